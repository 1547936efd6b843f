"""What docs/client.md says: its programs run, and it knows every option and exception."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import clq_client
from clq_client.commands import app

TEXT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (PROGRAMS[0], "button 0.88 (100.0, 50.0, 300.0, 150.0)\n"),
        (PROGRAMS[1], "shots/docs.png 2 objects\nshots/none.png failed: [Errno 2]"),
        (PROGRAMS[2], "2 2\n"),
    ],
)
def test_the_programs_run(peer, png, tmp_path, program, printed):
    (tmp_path / "shots").mkdir()
    for name in ("docs.png", "checkout.png"):
        (tmp_path / "shots" / name).write_bytes(png)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"CLQ_URL": peer.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(printed)


def test_every_option_that_it_names_is_there_and_every_exception_is_named():
    commands = typer.main.get_command(app).commands
    options = {
        name for command in commands.values() for item in command.params for name in item.opts
    }
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", TEXT))
    assert named <= options, named - options
    errors = [
        name
        for name in clq_client.__all__
        if isinstance(getattr(clq_client, name), type)
        and issubclass(getattr(clq_client, name), clq_client.ClqError)
    ]
    assert len(errors) == 11
    assert all(f"`{name}`" in TEXT for name in errors)
