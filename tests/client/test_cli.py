"""The command clq-client, as a process against a real server."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from clq_client.annotate import colour_of
from clq_client.commands import app
from clq_client.inputs import annotated_names

COMMAND = [sys.executable, "-c", "from clq_client.cli import main; main()"]


def clq(*arguments, cwd, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "120"} | environment,
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.fixture
def shots(tmp_path, png_of):
    """A folder with images in it and below it, two of one stem, and a file that is no image."""
    folder = tmp_path / "shots"
    for index, name in enumerate(["b.png", "a.png", "deep/a.PNG", "deep/er/c.png"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_of(400, 200, 40 * index))
    (folder / "notes.txt").write_text("no image")
    return folder


ALL = ["shots/a.png", "shots/b.png", "shots/deep/a.PNG", "shots/deep/er/c.png"]


def test_results_are_shown_as_plain_lines_in_order(peer, shots, tmp_path):
    done = clq("detect", "shots", "--url", peer.url, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ALL
    assert lines[:3] == [
        "shots/a.png  400x200  2 detections  14 ms",
        "  0.875  button         100.0     50.0    300.0    150.0",
        "  0.500  text field       0.0      0.0     80.0     25.0",
    ]


def test_on_a_terminal_results_are_tables(peer, shots, tmp_path):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "detect", "shots/a.png", "--url", peer.url],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
        stdout=theirs,
    ) as process:
        assert process.wait(20) == 0
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "shots/a.png" in text
    assert "━" in text
    assert "text field" in text


def test_options_reach_the_service_and_the_url_comes_from_the_environment(peer, shots, tmp_path):
    options = ["--score", "0.3", "--iou", "0.5", "--max", "9", "--classes", "button, text field"]
    done = clq("detect", "shots/a.png", *options, cwd=tmp_path, CLQ_URL=peer.url)
    assert done.returncode == 0
    assert peer.detects[0].query == {
        "score": ["0.3"],
        "iou": ["0.5"],
        "max": ["9"],
        "classes": ["button,text field"],
    }


def test_json_lines_are_in_order_whatever_ends_first(peer, shots, tmp_path):
    peer.slow_s[(shots / "a.png").read_bytes()] = 0.4
    done = clq("detect", "shots", "--out", "r.jsonl", "--url", peer.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ALL
    assert all(line["ok"] is True for line in lines)
    assert list(lines[0])[2:] == ["id", "model", "image", "detections", "timing_ms"]
    assert done.stderr.startswith("4 images in ")
    assert "img/s): r.jsonl" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "shots"]


def test_images_that_fail_are_listed_at_the_end_and_stop_nothing(peer, shots, tmp_path):
    (shots / "a.png").write_bytes(b"no image")
    refused = peer.problem_step(413, "image_too_large")
    peer.refused[(shots / "deep/a.PNG").read_bytes()] = refused
    done = clq("detect", "shots", "--out", "r.jsonl", "--url", peer.url, cwd=tmp_path)
    assert done.returncode == 1
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["ok"] for line in lines] == [False, True, False, True]
    assert list(lines[0]) == ["path", "ok", "error"]
    assert lines[0]["error"]["type"] == "ImageRefused"
    assert (lines[2]["error"]["status"], lines[2]["error"]["code"]) == (413, "image_too_large")
    told = done.stderr.splitlines()
    assert told[1] == "2 of 4 images failed:"
    assert told[2].startswith(
        "  shots/a.png: ImageRefused: 422 corrupt: detail of corrupt (request"
    )
    assert told[3].startswith("  shots/deep/a.PNG: ImageRefused: 413 image_too_large")


def test_annotated_copies_do_not_collide_for_equal_stems(peer, shots, tmp_path):
    done = clq("detect", "shots", "--annotate", "drawn", "--url", peer.url, cwd=tmp_path)
    assert done.returncode == 0
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["b.png", "c.png", "deep_a.PNG.png", "shots_a.png.png"]
    with Image.open(tmp_path / "drawn" / "b.png") as image:
        assert image.getpixel((200, 149)) == colour_of(0)


def test_a_result_whose_copy_cannot_be_drawn_is_kept_and_told(peer, shots, tmp_path, answer):
    answer["image"]["width"] = 401
    peer.answers()
    peer.answers(body=json.dumps(answer).encode())
    args = ["--annotate", "drawn", "--out", "r.jsonl", "--concurrency", "1", "--url", peer.url]
    done = clq("detect", "shots/a.png", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert "detected, but not annotated: the image has 400x200 pixels" in done.stderr
    assert json.loads((tmp_path / "r.jsonl").read_text())["ok"] is True
    assert list((tmp_path / "drawn").iterdir()) == []


def test_names_of_copies_all_differ():
    paths = ["x/a.png", "y/x/a.png", "a.png", "A.jpg", "x_a.png", "x_a.png.webp", "x_a.png-2.png"]
    names = annotated_names([Path(path) for path in paths])
    assert len({name.casefold() for name in names}) == len(paths)


def test_a_service_that_is_not_there_is_one_line_with_its_url(shots, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for command in (["detect", "shots", "--out", "r.jsonl"], ["labels"]):
            done = clq(*command, "--url", url, cwd=tmp_path)
            assert done.returncode == 2
            assert done.stderr.startswith(f"clq-client: {url}: no answer: ")
            assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.png"], "none.png: no such file or folder"),
        (["empty"], "empty: no images in it; looked for .png"),
        (["shots", "--url", "host:1"], "is not a base URL"),
        (["shots", "--classes", "a,,b"], "classes: ''"),
        (["shots", "--annotate", "shots/drawn"], "lies inside the input shots"),
        (["shots/a.png", "--annotate", "shots"], "would replace an image"),
        (["shots/a.png", "--out", "shots/a.png"], "would replace an image"),
        (["shots", "--out", "none/r.jsonl"], "--out none/r.jsonl"),
        (["shots", "--score", "2"], "--score"),
    ],
)
def test_a_wrong_command_line_says_so_before_any_request(
    peer, shots, tmp_path, monkeypatch, arguments, reason
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLQ_URL", peer.url)
    done = CliRunner().invoke(app, ["detect", *arguments])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert isinstance(done.exception, SystemExit)
    assert peer.seen == []


def test_ctrl_c_keeps_the_whole_lines_that_are_done(peer, shots, tmp_path):
    peer.slow_s[(shots / "b.png").read_bytes()] = 3.0  # the second of four
    with subprocess.Popen(
        [*COMMAND, "detect", "shots", "--out", "r.jsonl", "--url", peer.url],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until_s = time.monotonic() + 10
        while len(peer.detects) < 4 and time.monotonic() < until_s:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=5)
    assert process.returncode == 130
    assert told == "stopped; r.jsonl has the images that were done\n"
    text = (tmp_path / "r.jsonl").read_text()
    assert text.endswith("\n")
    paths = [json.loads(line)["path"] for line in text.splitlines()]
    assert paths == [path for path in ALL if path != "shots/b.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "shots"]


def test_labels_and_models_are_listed(peer, tmp_path):
    done = clq("labels", "--url", peer.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\tbutton\n1\ttext field\n")
    done = clq("models", "--url", peer.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"fake\t3\tsha256:{'ab' * 32}\n")


@pytest.mark.parametrize("missing", ["typer", "rich", "PIL"])
def test_without_the_extra_one_line_says_what_to_install(tmp_path, missing):
    code = f"import sys; sys.modules['{missing}'] = None\nfrom clq_client.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr == f'clq-client needs {missing}: pip install "clq-client[cli]"\n'


def test_the_library_needs_nothing_but_httpx(peer, shots, tmp_path):
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'PIL', 'numpy'): sys.modules[name] = None\n"
        "import clq_client\n"
        "with clq_client.Client() as client: print(client.detect('shots/a.png').image.width)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"CLQ_URL": peer.url},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "400\n", "")
