"""clq-client batch as a process: inputs, keys, resume, formats, exit codes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clq_client.annotate import colour_of

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()"]
ALL = ["shots/a.png", "shots/b.png", "shots/deep/a.PNG", "shots/deep/er/c.png"]


@pytest.fixture
def shots(tmp_path, png_of):
    """Four images in a folder and below it, and a file that is none."""
    folder = tmp_path / "shots"
    for index, name in enumerate(ALL):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_of(400, 200, 40 * index))
    (folder / "notes.txt").write_text("no image")
    return folder


def read_lines(path):
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return {entry["path"]: entry for entry in map(json.loads, text.splitlines())}


def test_each_image_is_a_line_and_the_service_is_told_that_it_is_bulk_work(
    peer, shots, clq, tmp_path
):
    done = clq("batch", "./shots", "--out", "r.jsonl", "--score", "0.3", "--url", peer.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("4 images in ")
    lines = read_lines(tmp_path / "r.jsonl")
    assert sorted(lines) == ALL
    first = lines[ALL[0]]
    assert list(first)[:3] == ["path", "ok", "asked"]
    assert (first["ok"], first["asked"]) == (True, {"score": 0.3})
    assert first["detections"][0]["label"] == "button"
    assert {seen.headers["x-priority"] for seen in peer.detects} == {"bulk"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "shots"]


def test_an_image_that_is_named_in_three_ways_is_sent_once(peer, shots, clq, tmp_path):
    stdin = b"shots/a.png\n\nshots/b.png\nshots/a.png"
    inputs = ["shots", "shots/a.png", "shots/**/*.png", "-"]
    done = clq("batch", *inputs, "--out", "r.jsonl", "--url", peer.url, stdin=stdin)
    assert done.returncode == 0
    assert sorted(read_lines(tmp_path / "r.jsonl")) == ALL
    assert len(peer.detects) == 4


def test_names_on_stdin_may_hold_anything_but_nul(peer, png, clq, tmp_path):
    names = [b"a\nb.png", b"\xff.png", "ü \U0001f600.png".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(png)
    done = clq("batch", "-", "-0", "--out", "r.csv", "--url", peer.url, stdin=b"\0".join(names))
    assert done.returncode == 0, done.stderr
    keys = read_lines(tmp_path / "r.csv.journal.jsonl")
    assert {os.fsencode(key) for key in keys} == set(names)
    with (tmp_path / "r.csv").open(newline="") as file:
        assert "\\udcff.png" in {row["path"] for row in csv.DictReader(file)}


def test_keys_are_relative_to_the_root(peer, shots, clq, tmp_path):
    done = clq("batch", shots, "--root", shots, "--out", "r.jsonl", "--url", peer.url)
    assert done.returncode == 0
    assert sorted(read_lines(tmp_path / "r.jsonl")) == [
        *("a.png", "b.png", "deep/a.PNG", "deep/er/c.png")
    ]


def test_an_empty_folder_is_no_failure(peer, clq, tmp_path):
    (tmp_path / "empty").mkdir()
    done = clq("batch", "empty", "none/*.png", "--out", "r.jsonl", "--url", peer.url)
    assert (done.returncode, read_lines(tmp_path / "r.jsonl")) == (0, {})


def test_a_second_run_sends_only_what_is_new(peer, shots, clq, tmp_path, png):
    command = ["batch", "shots", "--out", "r.jsonl", "--url", peer.url]
    assert clq(*command).returncode == 0
    (shots / "new.png").write_bytes(png)
    done = clq(*command)
    assert done.returncode == 0
    assert "4 before" in done.stderr
    assert len(read_lines(tmp_path / "r.jsonl")) == len(peer.detects) == 5


def test_images_that_fail_are_lines_and_are_listed_and_can_be_sent_again(
    peer, shots, clq, tmp_path, png
):
    (shots / "a.png").write_bytes(b"no image")
    (shots / "b.png").unlink()
    os.mkfifo(shots / "pipe.png")
    command = ["batch", "-", "--out", "r.jsonl", "--url", peer.url]
    stdin = b"shots/a.png\nshots/b.png\nshots/deep/a.PNG\nshots/pipe.png\nshots"
    done = clq(*command, stdin=stdin)
    assert done.returncode == 1
    lines = read_lines(tmp_path / "r.jsonl")
    assert [path for path in lines if lines[path]["ok"]] == ["shots/deep/a.PNG"]
    assert lines["shots/a.png"]["error"]["code"] == "corrupt"
    assert lines["shots/b.png"]["error"]["type"] == "FileNotFoundError"
    assert "4 of 5 images failed" in done.stderr
    assert "  shots/a.png: ImageRefused: 422 corrupt: detail of corrupt" in done.stderr
    assert "  shots/pipe.png: cannot read: shots/pipe.png: is not a file" in done.stderr
    again = clq(*command, stdin=stdin)
    assert again.returncode == 1  # nothing to do, but the result is not complete
    assert "4 images failed in earlier runs; --retry-failed sends them again" in again.stderr
    for name in ("a.png", "b.png"):
        (shots / name).write_bytes(png)
    sent = len(peer.detects)
    done = clq(*command, "--retry-failed", stdin=b"shots/a.png\nshots/b.png\nshots/deep/a.PNG")
    assert done.returncode == 0
    assert len(peer.detects) == sent + 2
    assert all(line["ok"] for line in read_lines(tmp_path / "r.jsonl").values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "shots"]


@pytest.mark.parametrize("torn", [b'{"path": "shots/b.p', b'{"pa', b"\0\0\0\0"])
def test_a_torn_last_line_is_cut_and_its_image_sent_again(peer, shots, clq, tmp_path, torn):
    command = ["batch", "shots", "--out", "r.jsonl", "--url", peer.url]
    clq(*command)
    *kept, _ = (tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "r.jsonl").write_bytes(b"".join(kept) + torn)
    done = clq(*command)
    assert done.returncode == 0
    assert f"cut {len(torn)} bytes of a line that was torn" in done.stderr
    assert sorted(read_lines(tmp_path / "r.jsonl")) == ALL
    assert len(peer.detects) == 5


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"a\nb", b'{"a": 1}\n'])
def test_a_file_of_something_else_is_refused_and_not_touched(peer, shots, clq, tmp_path, content):
    (tmp_path / "r.jsonl").write_bytes(content)
    done = clq("batch", "shots", "--out", "r.jsonl", "--url", peer.url)
    assert done.returncode == 2
    assert "take another file for --out" in done.stderr
    assert (tmp_path / "r.jsonl").read_bytes() == content


def test_other_options_or_another_model_do_not_go_into_the_same_result(
    peer, shots, clq, tmp_path, monkeypatch
):
    command = ["batch", "shots", "--out", "r.jsonl", "--url", peer.url]
    clq(*command)
    done = clq(*command, "--score", "0.5")
    assert done.returncode == 2
    assert "was made with the options {}, not {'score': 0.5}" in done.stderr
    monkeypatch.setattr(peer, "digest", "sha256:" + "cc" * 32)
    done = clq(*command)
    assert done.returncode == 2
    assert "was made with fake/3 sha256:abababababab, the service now has fake/3" in done.stderr
    assert len(peer.detects) == 4


def test_two_runs_do_not_write_one_file(peer, shots, clq, tmp_path):
    peer.slow_s[(shots / "a.png").read_bytes()] = 20.0
    command = ["batch", "shots", "--out", "r.jsonl", "--url", peer.url]
    with subprocess.Popen([*COMMAND, *command], cwd=tmp_path, stderr=subprocess.PIPE) as first:
        until_s = time.monotonic() + 20
        while len(peer.detects) < 4 and time.monotonic() < until_s:
            time.sleep(0.02)
        done = clq(*command)
        assert done.returncode == 2
        assert "r.jsonl: another run is writing it" in done.stderr
        first.send_signal(signal.SIGTERM)
        _, told = first.communicate(timeout=20)
    assert first.returncode == 143
    assert b"stopped by SIGTERM; the same command goes on" in told
    assert sorted(read_lines(tmp_path / "r.jsonl")) == ALL[1:]


def test_a_service_that_is_away_for_a_while_is_waited_for(peer, shots, clq, tmp_path, monkeypatch):
    monkeypatch.setattr("clq_client.retry.LONGEST_WAIT_S", 0.1)
    draining = peer.problem_step(503, "draining")
    overloaded = peer.problem_step(503, "overloaded", retry_after=1)
    peer.detect_steps = [type(draining)(cut="before") for _ in range(6)] + [draining, overloaded]
    done = clq("batch", "shots", "--out", "r.jsonl", "--url", peer.url)
    assert done.returncode == 0, done.stderr
    assert sorted(read_lines(tmp_path / "r.jsonl")) == ALL


@pytest.mark.slow
def test_a_service_that_stays_away_ends_the_run_and_the_next_one_goes_on(
    peer, shots, clq, tmp_path
):
    command = ["batch", "shots", "--out", "r.jsonl", "--url", peer.url]
    peer.detect_steps = [peer.problem_step(503, "draining")] * 1000
    done = clq(*command, "--patience", "1")
    assert done.returncode == 3
    assert "no result for 1 s; the last reason: 503 draining" in done.stderr
    assert "the same command goes on" in done.stderr
    assert read_lines(tmp_path / "r.jsonl") == {}
    peer.detect_steps.clear()
    assert clq(*command).returncode == 0
    assert sorted(read_lines(tmp_path / "r.jsonl")) == ALL


@pytest.mark.parametrize(
    ("status", "code"), [(401, "no_key"), (404, "unknown_model"), (422, "bad_parameter")]
)
def test_what_every_image_would_be_told_ends_the_run(peer, shots, clq, tmp_path, status, code):
    refused = peer.problem_step(status, code)
    peer.detect_steps = [type(refused)(), *[refused] * 40]
    command = ["batch", "shots", "--out", "r.jsonl", "--concurrency", "1", "--url", peer.url]
    done = clq(*command)
    assert done.returncode == 2
    assert f"clq-client: {status} {code}" in done.stderr
    assert len(read_lines(tmp_path / "r.jsonl")) == 1
    peer.detect_steps.clear()
    assert clq(*command).returncode == 0
    assert len(peer.detects) == 5


def test_a_service_that_is_not_there_leaves_no_file(shots, clq, tmp_path, monkeypatch):
    monkeypatch.setattr("clq_client.retry.LONGEST_WAIT_S", 0.02)
    done = clq("batch", "shots", "--out", "r.jsonl", "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("clq-client: http://127.0.0.1:9: no answer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shots"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none"], "none: no such file or folder"),
        (["shots", "--out", "r.txt"], "accepted: --format jsonl, coco, csv, parquet"),
        (["shots", "--out", "no/r.jsonl"], "--out no/r.jsonl"),
        (["shots", "--annotate", "shots/x"], "lies inside the input shots"),
        (["shots", "--every", "2", "--fps", "2"], "--every and --fps"),
        (["shots", "--fps", "0"], "--fps 0.0"),
        (["clip.mp4"], "is a video; say which frames"),
        (["shots", "--root", "none"], "--root none: is not a folder"),
        (["shots", "--classes", "a,,b"], "classes: ''"),
    ],
)
def test_a_wrong_command_line_says_so_before_any_request(
    peer, shots, clq, tmp_path, arguments, reason
):
    (tmp_path / "clip.mp4").write_bytes(b"")
    done = clq("batch", "--out", "r.jsonl", *arguments, "--url", peer.url)
    assert done.returncode == 2
    assert reason in done.stderr
    assert peer.seen == []


def test_coco_csv_and_parquet_hold_every_result_and_are_the_same_after_a_resume(
    peer, shots, clq, tmp_path, png_of
):
    (shots / "bad.png").write_bytes(b"no image")
    for name in ("r.json", "r.csv", "r.parquet"):
        command = ["batch", "shots", "--out", name, "--url", peer.url]
        assert clq(*command).returncode == 1
        first = (tmp_path / name).read_bytes()
        journal = tmp_path / f"{name}.journal.jsonl"
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines[3:]))
        assert clq(*command).returncode == 1
        assert (tmp_path / name).read_bytes() == first
        assert list(read_lines(tmp_path / f"{name}.failures.jsonl")) == ["shots/bad.png"]

    coco = COCO(tmp_path / "r.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == ALL
    assert [entry["name"] for entry in coco.dataset["categories"]] == ["button", "text field"]
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert found[0]["bbox"] == [100.0, 50.0, 200.0, 100.0]
    assert (found[0]["score"], found[0]["area"]) == (0.875, 20000.0)

    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[0]["path"] == ALL[0]
    assert [rows[0][key] for key in ("label", "score", "x1", "y2")] == [
        *("button", "0.875", "100.0", "150.0")
    ]

    table = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["path"] for row in table] == ALL
    assert table[0]["detections"][0]["x2"] == 300.0
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_annotated_copies_have_the_folders_of_their_images(peer, shots, clq, tmp_path):
    done = clq("batch", "shots", "--annotate", "drawn", "--out", "r.jsonl", "--url", peer.url)
    assert done.returncode == 0
    drawn = [p for p in (tmp_path / "drawn").rglob("*") if p.is_file()]
    assert sorted(str(p.relative_to(tmp_path / "drawn")) for p in drawn) == [
        f"{p}.png" for p in ALL
    ]
    with Image.open(tmp_path / "drawn/shots/b.png.png") as image:
        assert image.getpixel((200, 149)) == colour_of(0)


@pytest.fixture
def clip(tmp_path):
    """Two seconds of video, 10 frames a second, each brighter than the one before."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            pixels = np.full((48, 64, 3), 12 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("option", "indices"),
    [
        (["--every", "8"], [0, 8, 16]),
        (["--fps", "2"], [0, 5, 10, 15]),
        (["--fps", "99"], range(20)),
    ],
)
def test_the_chosen_frames_of_a_video_are_images(peer, clip, clq, tmp_path, option, indices):
    command = ["batch", ".", *option, "--out", "r.jsonl", "--url", peer.url]
    assert clq(*command).returncode == 0
    lines = read_lines(tmp_path / "r.jsonl")
    assert set(lines) == {f"clip.mp4#frame={index}" for index in indices}
    frame = lines[f"clip.mp4#frame={indices[1]}"]["frame"]
    assert frame == {
        "video": "clip.mp4",
        "index": indices[1],
        "time_s": pytest.approx(indices[1] / 10),
    }
    assert lines["clip.mp4#frame=0"]["image"]["width"] == 64
    assert clq(*command).returncode == 0
    assert len(peer.detects) == len(indices)


def test_a_video_that_cannot_be_read_is_a_failure(peer, clq, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    done = clq("batch", "broken.mp4", "--every", "1", "--out", "r.jsonl", "--url", peer.url)
    assert done.returncode == 1
    assert "broken.mp4: cannot read: broken.mp4: the video cannot be read" in done.stderr


def test_quiet_tells_only_what_failed(peer, shots, clq, tmp_path):
    command = ["batch", "shots", "--quiet", "--out", "r.jsonl", "--url", peer.url]
    done = clq(*command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (shots / "bad.png").write_bytes(b"no image")
    done = clq(*command)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "1 of 1 image failed (1 corrupt):"


def test_the_json_log_is_one_object_a_line(peer, shots, clq, tmp_path):
    (shots / "bad.png").write_bytes(b"no image")
    done = clq("batch", "shots", "--log", "json", "--out", "r.jsonl", "--url", peer.url)
    assert (done.returncode, done.stdout) == (1, "")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["start", "failed", "end"]
    assert events[1]["path"] == "shots/bad.png"
    assert (events[1]["status"], events[1]["code"]) == (422, "corrupt")
    assert (events[2]["done"], events[2]["failed"], events[2]["total"]) == (5, 1, 5)
    done = clq("batch", "none", "--log", "json", "--out", "r.jsonl", "--url", peer.url)
    assert json.loads(done.stderr)["event"] == "error"


@pytest.mark.parametrize("missing", ["av", "pyarrow"])
def test_an_extra_that_is_missing_is_named(peer, shots, tmp_path, missing):
    code = f"import sys; sys.modules['{missing}'] = None\nfrom clq_client.cli import main; main()"
    arguments = {"av": ["--every", "2", "--out", "r.jsonl"], "pyarrow": ["--out", "r.parquet"]}
    done = subprocess.run(
        [sys.executable, "-c", code, "batch", "shots", *arguments[missing], "--url", peer.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    extra = {"av": "video", "pyarrow": "parquet"}[missing]
    assert f'pip install "clq-client[{extra}]"' in done.stderr
