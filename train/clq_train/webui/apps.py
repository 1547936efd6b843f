"""Applications that run locally while their pages are rendered: data/apps.toml.

Each has a virtual environment of its own in the cache, installed from a list of exact versions and
hashes, and listens on 127.0.0.1 until the build ends.
"""

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clq_train.errors import DataError
from clq_train.webui.build import die_with_parent
from clq_train.webui.sources import DATA

HERE = Path(__file__).parent / "app_files"
START_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class App:
    """files: of app_files/, copied into its folder; setup, command: {bin}, {port} are filled in.

    pages: paths, in which {n} counts from 0 to `count` - 1; requirements: name of the list of
    packages where it is not the application's own
    """

    name: str
    files: list[str]
    command: list[str]
    pages: list[str]
    ready: str = "/"
    count: int = 1
    setup: list[list[str]] | None = None
    requirements: str = ""

    @property
    def locked(self) -> Path:
        """Exact versions and hashes of what it is installed from."""
        return DATA / "apps" / f"{self.requirements or self.name}.txt"

    def all_pages(self) -> list[str]:
        return [page.replace("{n}", str(n)) for n in range(self.count) for page in self.pages]


@functools.cache
def apps() -> dict[str, App]:
    tree = tomllib.loads((DATA / "apps.toml").read_text())
    return {name: App(name=name, **entry) for name, entry in tree.items()}


def install(app: App, cache: Path) -> Path:
    """The application's folder in the cache, installed and set up once.

    Raises DataError with pip's last line when it can't be installed.
    """
    folder, wanted = cache / "apps" / app.name, _fingerprint(app)
    done = folder / ".clq-complete"
    if done.is_file() and done.read_bytes() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet"]
    _run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(app.locked)], folder)
    for file in app.files:
        shutil.copy(HERE / file, folder / file)
    for command in app.setup or []:
        _run([_filled(word, folder, 0) for word in command], folder)
    done.write_bytes(wanted)
    return folder


@contextlib.contextmanager
def running(app: App, folder: Path) -> Iterator[int]:
    """The port of the running application. Raises DataError when it does not answer in time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [_filled(word, folder, port) for word in app.command]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder),
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}{app.ready}", process, app.name, folder / "log")
        yield port
    finally:
        process.kill()
        process.wait()
        log.close()


def _environment(folder: Path) -> dict[str, str]:
    """Without the parent's Python path, with a home of its own, and no reports to anybody."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "TMPDIR")}
    off = {"GRADIO_ANALYTICS_ENABLED": "False", "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false"}
    return kept | off | {"HOME": str(folder), "NO_PROXY": "127.0.0.1,localhost"}


def _filled(word: str, folder: Path, port: int) -> str:
    return word.replace("{bin}", str(folder / "venv/bin")).replace("{port}", str(port))


def _fingerprint(app: App) -> bytes:
    parts = [app.locked.read_bytes(), repr(app.setup).encode()]
    return b"\0".join(parts + [(HERE / file).read_bytes() for file in app.files])


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-2:]
        raise DataError(f"{' '.join(command)}: {' / '.join(last)}")


def _wait_for(url: str, process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read(1)
            return
        if process.poll() is not None:
            break
        time.sleep(0.3)
    last = log.read_text(errors="replace").strip().splitlines()[-2:]
    raise DataError(f"the application {name} does not answer at {url}: {' / '.join(last)}")
