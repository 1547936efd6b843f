"""Writes pages of documentation for mkdocs (`docs_pages.py md`) or Sphinx (`docs_pages.py rst THEME...`)."""

import random
import sys
from pathlib import Path

TITLES = [
    "Installation",
    "First steps",
    "Configuration",
    "Command line",
    "Data model",
    "Permissions",
    "Backups",
    "Upgrading",
    "Plugins",
    "Events",
    "Errors",
    "Testing",
    "Deployment",
    "Search",
    "Caching",
    "Glossary",
]
SENTENCES = ["The command reads the file and writes the result beside it.", "Every option has a default that is safe to keep.", "Nothing is removed before the new version is in place.", "A worker takes the next task when it has finished its own.", "Set the limit to zero to turn it off.", "The list is sorted by date, newest first.", "Errors name the file and the line."]  # fmt: skip
CODE = "import store\n\ntable = store.open('orders')\nfor row in table.rows(limit=10):\n    print(row.name, row.total)"


def text(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(SENTENCES) for _ in range(rng.randint(low, high)))


def markdown(title: str, rng: random.Random) -> str:
    parts = [f"# {title}", text(rng, 2, 4)]
    for _ in range(rng.randint(4, 8)):
        parts.append(rng.choice((
            lambda: f"## {rng.choice(TITLES)}", lambda: text(rng, 2, 5), lambda: f"```python\n{CODE}\n```",
            lambda: "\n".join(f"- {text(rng, 1, 1)}" for _ in range(4)), lambda: "\n".join(f"- [{'x' if i % 2 else ' '}] {text(rng, 1, 1)}" for i in range(4)),
            lambda: "| option | default | meaning |\n|---|---|---|\n" + "\n".join(f"| `{t.lower()}` | {rng.randint(0, 99)} | {text(rng, 1, 1)} |" for t in rng.sample(TITLES, 4)),
            lambda: f'!!! {rng.choice(["note", "warning", "tip"])}\n    {text(rng, 1, 2)}', lambda: f"See [{rng.choice(TITLES)}](#) and `store.open`. {text(rng, 1, 2)}",
            lambda: f'=== "Linux"\n\n    {text(rng, 1, 2)}\n\n=== "Windows"\n\n    {text(rng, 1, 1)}',
        ))())  # fmt: skip
    return "\n\n".join(parts) + "\n"


def rst(title: str, rng: random.Random) -> str:
    parts = [f"{title}\n{'=' * len(title)}", text(rng, 2, 4)]
    for _ in range(rng.randint(4, 8)):
        heading = rng.choice(TITLES)
        parts.append(rng.choice((
            lambda heading=heading: f"{heading}\n{'-' * len(heading)}", lambda: text(rng, 2, 5),
            lambda: ".. code-block:: python\n\n" + "\n".join(f"   {line}" for line in CODE.splitlines()),
            lambda: "\n".join(f"* {text(rng, 1, 1)}" for _ in range(4)), lambda: f".. {rng.choice(['note', 'warning', 'tip'])}::\n\n   {text(rng, 1, 2)}",
            lambda: ".. list-table::\n   :header-rows: 1\n\n   * - Option\n     - Meaning\n" + "\n".join(f"   * - ``{t.lower()}``\n     - {text(rng, 1, 1)}" for t in rng.sample(TITLES, 4)),
            lambda heading=heading: f"See `{heading} <index.html>`__ and ``store.open``. {text(rng, 1, 2)}",
        ))())  # fmt: skip
    return "\n\n".join(parts) + "\n"


def main() -> None:
    kind, *themes = sys.argv[1:]
    folder = Path("docs")
    folder.mkdir(exist_ok=True)
    names = []
    for number, title in enumerate(TITLES):
        names.append(title.lower().replace(" ", "-"))
        write = markdown if kind == "md" else rst
        (folder / f"{names[-1]}.{kind}").write_text(write(title, random.Random(number)))
    if kind == "md":
        (folder / "index.md").write_text(markdown("Store", random.Random(99)))
        features = "[navigation.tabs, navigation.sections, content.tabs.link, toc.follow]"
        Path("mkdocs.yml").write_text(
            "site_name: Store\ntheme:\n  name: material\n  font: false\n  palette:\n"
            "    - media: '(prefers-color-scheme: light)'\n      scheme: default\n      primary: teal\n"
            f"    - media: '(prefers-color-scheme: dark)'\n      scheme: slate\n      primary: indigo\n  features: {features}\n"
            "markdown_extensions: [admonition, tables, pymdownx.superfences, pymdownx.tasklist, pymdownx.tabbed: {alternate_style: true}]\n"
            "plugins: [search]\n"
        )
        return
    toc = (
        "Store\n=====\n\n"
        + text(random.Random(5), 3, 4)
        + "\n\n.. toctree::\n   :maxdepth: 2\n\n"
        + "\n".join(f"   {n}" for n in names)
        + "\n"
    )
    (folder / "index.rst").write_text(toc)
    (folder / "conf.py").write_text("project = 'Store'\nauthor = 'CLQ'\n")
    import subprocess

    for theme in themes:
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-D",
            f"html_theme={theme}",
            "docs",
            f"site/{theme}",
        ]
        subprocess.run(command, check=True)


main()
