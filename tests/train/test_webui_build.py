"""A whole build of pages of our own: killed, gone on with, and made twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the extra clq-train[webui]")

from clq_train.errors import DataError  # noqa: E402
from clq_train.webui.dataset import Settings, build_dataset  # noqa: E402

pytestmark = pytest.mark.slow

IMAGES = 12
PROGRAM = """
import sys
from pathlib import Path
from clq_train.webui.dataset import Settings, build_dataset

if __name__ == "__main__":
    build_dataset(Path(sys.argv[1]), Settings(12, 7, ("empty", "plain")), Path(sys.argv[2]), 2,
                  sys.argv[3], True)
"""


@pytest.fixture
def chromium():
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium on the path")
    return found


@pytest.fixture
def no_packages(monkeypatch, tmp_path):
    """Families that need nothing to be fetched: pages of our own without a library."""
    from clq_train.webui import dataset, sources

    families = {
        "empty": sources.all_families()["empty"],
        "plain": sources.Family(
            "plain",
            "train",
            "composed",
            1,
            "Apache-2.0",
            composer="own",
            options={"libraries": ["plain"]},
        ),
    }
    monkeypatch.setattr(sources, "all_families", lambda: families)
    monkeypatch.setattr(dataset, "needed_packages", lambda _: [])
    return Settings(IMAGES, 7, ("empty", "plain"))


def images_and_boxes(folder: Path) -> dict[str, list]:
    tree = json.loads((folder / "train.json").read_bytes())
    names = {image["id"]: image["file_name"] for image in tree["images"]}
    found: dict[str, list] = {name: [] for name in names.values()}
    for annotation in tree["annotations"]:
        found[names[annotation["image_id"]]].append((annotation["fine"], annotation["bbox"]))
    return found


def test_the_same_seed_gives_the_same_boxes_and_other_settings_are_refused(
    tmp_path, chromium, no_packages
):
    for name in ("one", "two"):
        build_dataset(tmp_path / name, no_packages, tmp_path / "cache", 2, chromium, True)
    one = images_and_boxes(tmp_path / "one")
    assert one == images_and_boxes(tmp_path / "two")
    assert len(one) >= IMAGES - 4
    assert any(one.values())
    with pytest.raises(DataError, match=r"build\.json: built with"):
        build_dataset(
            tmp_path / "one", Settings(99, 7, ("empty",)), tmp_path / "cache", 2, chromium, True
        )


def descendants(process: int) -> list[int]:
    """Every process below this one, by /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    below, found = [process], []
    while below:
        children = [child for child, parent in parents.items() if parent == below[-1]]
        below.pop()
        below += children
        found += children
    return found


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_killed_build_leaves_no_process_and_goes_on_where_it_stopped(tmp_path, chromium):
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.replace(
            'if __name__ == "__main__":',
            "from clq_train.webui import dataset, sources\n"
            'own = sources.Family("plain", "train", "composed", 1, "Apache-2.0", composer="own",'
            ' options={"libraries": ["plain"]})\n'
            'families = {"empty": sources.all_families()["empty"], "plain": own}\n'
            "sources.all_families = lambda: families\n"
            "dataset.needed_packages = lambda _: []\n\n"
            'if __name__ == "__main__":',
        )
    )
    out = tmp_path / "data"
    command = [sys.executable, str(program), str(out), str(tmp_path / "cache"), chromium]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list((out / "records").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    below = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p.name: p.stat().st_mtime_ns for p in (out / "records").glob("*.json")}
    assert done
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [p for p in below if is_alive(p)] == []
    subprocess.run(command, check=True)
    for name, written in done.items():
        assert (out / "records" / name).stat().st_mtime_ns == written, f"{name} was made again"
    assert len(images_and_boxes(out)) >= IMAGES - 4
    assert sorted(p.name for p in (out / "images").iterdir()) == sorted(images_and_boxes(out))
