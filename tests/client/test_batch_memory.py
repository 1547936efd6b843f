"""Memory of a batch over 100,000 files: what is held does not grow with their number."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()"]
FILES = 100_000
MOST_GROWN_KIB = 12 * 1024  # the table of keys has a cache of 8 MiB


def rss_kib(process):
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(found[0].split()[1]) if found else None


@pytest.mark.slow
def test_memory_over_a_hundred_thousand_files_stays_flat(tmp_path):
    for number in range(FILES):
        folder = tmp_path / "shots" / f"{number // 50_000}"  # 50,000 names in one folder
        if number % 50_000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:06}.png").write_bytes(b"x")
    program = Path(__file__).parent / "instant_server.py"
    out = tmp_path / "r.jsonl"
    sizes = {}
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            command = [*COMMAND, "batch", "shots", "--out", "r.jsonl", "--quiet", "--url", url]
            with subprocess.Popen(command, cwd=tmp_path) as process:
                while process.poll() is None:
                    line = out.stat().st_size // 400 if out.exists() else 0
                    size = rss_kib(process)
                    if line and size is not None:
                        sizes[line] = size
                    time.sleep(0.2)
            assert process.returncode == 0
        finally:
            server.kill()
    assert out.read_bytes().count(b"\n") == FILES
    early = max(size for line, size in sizes.items() if line < FILES // 10)
    late = max(sizes.values())
    print(f"resident memory: {early} KiB after a tenth, {late} KiB at most")
    assert late - early < MOST_GROWN_KIB
