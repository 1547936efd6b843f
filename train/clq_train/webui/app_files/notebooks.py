"""Writes what JupyterLab shows: notebooks that ran, a text, a table, a program."""

import json
import random
from pathlib import Path

folder = Path("work")
folder.mkdir(exist_ok=True)
for name in ("report", "survey"):
    rng, cells = random.Random(name), []
    for number in range(1, 9):
        if rng.random() < 0.35:
            cells.append(
                {
                    "cell_type": "markdown",
                    "metadata": {},
                    "source": f"## Part {number}\nThe table is read and *cleaned*.",
                }
            )
            continue
        values = [rng.randint(0, 99) for _ in range(6)]
        cells.append({
            "cell_type": "code", "execution_count": number, "metadata": {}, "source": f"values = {values}\nsum(values) / len(values)",
            "outputs": [{"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": {"text/plain": str(sum(values) / 6)}}],
        })  # fmt: skip
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / f"{name}.ipynb").write_text(json.dumps(book))
(folder / "notes.md").write_text(
    "# Notes\n\n- read the file\n- [ ] clean it\n\n```python\nprint(1)\n```\n"
)
(folder / "table.csv").write_text(
    "name,city,total\n" + "\n".join(f"row {i},Oslo,{i * 7}" for i in range(40))
)
(folder / "clean.py").write_text("def clean(rows):\n    return [row for row in rows if row]\n")
(folder / "settings.json").write_text(json.dumps({"limit": 10, "names": ["a", "b"]}))
