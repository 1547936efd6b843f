"""Every image exactly once in the result, whatever happens on the way."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()"]


def make_images(folder, count):
    """Small images, all different, in folders of 100."""
    for number in range(count):
        path = folder / f"{number // 100:03}" / f"{number:05}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour_of(number)).save(path)


def colour_of(number):
    return number % 256, number // 256, 200


def lines_of(path):
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def assert_complete(lines, folder, root):
    """Each image once, with a result that is about its very bytes."""
    files = {str(p.relative_to(root)): p for p in folder.rglob("*.bmp")}
    assert len(lines) == len(files)
    assert {line["path"] for line in lines} == set(files)
    for line in lines:
        assert line["ok"], line
        data = files[line["path"]].read_bytes()
        assert line["image"]["sha256"] == hashlib.sha256(data).hexdigest()
        colour = colour_of(int(line["path"][-9:-4]))
        assert line["detections"][0]["class_id"] == colour.index(max(colour))


@pytest.fixture
def proxy_of():
    """proxy_of(url, seed, share) -> URL of a fault proxy before that service."""
    processes = []

    def start(url, seed, share):
        program = Path(__file__).parent / "fault_proxy.py"
        arguments = [url.rpartition(":")[2], str(seed), str(share)]
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def batch_through(url, tmp_path, count):
    make_images(tmp_path / "shots", count)
    arguments = ["batch", "shots", "--out", "r.jsonl", "--url", url]
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_complete(lines_of(tmp_path / "r.jsonl"), tmp_path / "shots", tmp_path)


@pytest.mark.slow
def test_every_image_is_in_the_result_once_though_a_third_of_all_requests_break(
    service, proxy_of, tmp_path
):
    batch_through(proxy_of(service, seed=1, share=0.33), tmp_path, 300)


@pytest.mark.slow
def test_ten_thousand_images_are_in_the_result_once_though_many_requests_break(
    service, proxy_of, tmp_path
):
    batch_through(proxy_of(service, seed=2, share=0.15), tmp_path, 10_000)


@pytest.mark.slow
def test_a_service_that_takes_two_at_a_time_is_given_two_and_no_image_fails(
    start_service, tmp_path
):
    batch_through(start_service(max_pending=2), tmp_path, 200)


def killed_and_resumed(url, tmp_path, count, rounds, how):
    """Kills the command at `rounds` random points, then lets it end."""
    make_images(tmp_path / "shots", count)
    chance = random.Random(3)
    out = tmp_path / "r.jsonl"
    command = [*COMMAND, "batch", "shots", "--out", "r.jsonl", "--url", url, "--concurrency", "8"]
    for number in range(1, rounds + 1):
        goal = count * number // (rounds + 1)
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            until_s = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until_s:
                if out.exists() and out.read_bytes().count(b"\n") >= goal:
                    break
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(how)
            _, told = process.communicate(timeout=20)
        assert process.returncode in (-how, 128 + how), told
        kept = out.read_bytes()
        assert kept.count(b"\n") >= goal
        out.write_bytes(kept + b'{"path": "shots/000/00001.b' if chance.random() < 0.5 else kept)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_complete(lines_of(out), tmp_path / "shots", tmp_path)


def test_a_run_that_is_killed_hard_is_gone_on_with(service, tmp_path):
    killed_and_resumed(service, tmp_path, 400, 2, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "rounds"), [(signal.SIGKILL, 5), (signal.SIGTERM, 2), (signal.SIGINT, 2)]
)
def test_a_run_that_is_stopped_many_times_is_gone_on_with(service, proxy_of, tmp_path, how, rounds):
    killed_and_resumed(proxy_of(service, seed=4, share=0.1), tmp_path, 300 * rounds, rounds, how)
