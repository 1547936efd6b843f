"""docs/api.md: each command is run, and what it shows is what is answered.

`python tests/serve/test_api_page.py` writes the answers anew.
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the call by hand
from service_process import PATIENCE_S, running

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
SHOWN_URL = "http://127.0.0.1:8000"
MAX_BOX_PX, MAX_SCORE = 0.5, 1e-3
# New each time, or a matter of the machine.
VOLATILE = re.compile(
    r'"(?:id|request_id|stage)":"[^"]*"|in stage \'[a-z]+\''
    r'|"timing_ms":\{[^}]*\}|"duration":[0-9.e-]+'
)
VOLATILE_HEADERS = re.compile(r"^(date|server-timing|content-length): .*$", re.MULTILINE)


def blocks() -> list[str]:
    return re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)


def sessions() -> list[tuple[str, str]]:
    """(command, printed answer) of every command of the page."""
    found = []
    for block in blocks():
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@contextlib.contextmanager
def built_in_service() -> Iterator[str]:
    with running("--set=log_level=error") as service:
        yield service.url


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with built_in_service() as found:
        yield found


def answer_of(command: str, url: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command.replace(SHOWN_URL, url)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    printed = done.stdout.replace("\r\n", "\n").strip("\n")
    return printed.replace(url, SHOWN_URL) + "\n"


def parts_of(text: str) -> tuple[str, list[float]]:
    """What has to be equal, and the numbers that have to be close."""
    text = VOLATILE_HEADERS.sub(r"\1:", VOLATILE.sub("", text))
    number = r"(?<![\w.-])-?\d+\.\d+(?:e-?\d+)?"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def assert_same(found: str, shown: str) -> None:
    found_text, found_numbers = parts_of(found)
    shown_text, shown_numbers = parts_of(shown)
    assert found_text == shown_text
    for ours, theirs in zip(found_numbers, shown_numbers, strict=True):
        assert ours == pytest.approx(theirs, abs=MAX_SCORE if abs(theirs) <= 1 else MAX_BOX_PX)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(sessions())))
def test_a_command_of_the_page_answers_what_it_shows(url: str, number: int) -> None:
    command, shown = sessions()[number]
    assert shown, f"{command}: shows no answer; python tests/serve/test_api_page.py writes it"
    assert_same(answer_of(command, url), shown)


def test_the_page_names_every_route_and_option() -> None:
    text = PAGE.read_text()
    document = json.loads((ROOT / "docs" / "openapi.json").read_text())
    for path, operations in document["paths"].items():
        words = path.replace("{name}", "NAME").replace("{version}", "N")
        if path.startswith("/v1") and "models/" not in path and path != "/v1/models":
            assert path in text, path
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] in ("query", "header"):
                    assert f"`{parameter['name']}`" in text, (words, parameter["name"])
            for status in operation["responses"]:
                assert status in text, (words, status)


def write_anew() -> None:
    """Writes the answer of each command below it."""
    text = PAGE.read_text()
    with built_in_service() as url:
        for block in blocks():
            commands = re.findall(r"^\$ (.*)$", block, re.MULTILINE)
            new = "".join(f"$ {command}\n{answer_of(command, url)}" for command in commands)
            text = text.replace(f"```console\n{block}```", f"```console\n{new}```")
    beside = PAGE.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(PAGE)


if __name__ == "__main__":
    write_anew()
