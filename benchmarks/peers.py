"""How fast CLQ is beside other servers: `python benchmarks/peers.py --cache FOLDER`.

Every server runs the built-in model with CLQ's own decoding, preparation and suppression
(peers/same.py), so that only the serving differs.  Each peer is installed in an environment of its
own under FOLDER, and is taken in turn: started, asked for the boxes of the test screens (which must
be CLQ's), then loaded by wrk.  There are two manners of each: the defaults of ONNX Runtime, with
batches where the peer has them; and a worker with one thread for each core.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
SCREENS = sorted((ROOT / "tests/data/screens").glob("*.png"))
CORES = len(os.sched_getaffinity(0))
START_TIMEOUT_S = 180
ANSWER_TIMEOUT_S = 120
CLQ = (
    "import sys; from clq_serve.cli import main; sys.argv[1:] = ['run', '--port', '{port}']; main()"
)

Encode = Callable[[bytes], tuple[str, bytes]]  # an image file -> content type and body
Decode = Callable[[dict | list], list[dict]]  # an answer -> its detections


def raw(image: bytes) -> tuple[str, bytes]:
    return "Content-Type: image/png", image


def form(field: str) -> Encode:
    """A multipart form with one file."""

    def encode(image: bytes) -> tuple[str, bytes]:
        head = (
            f'--peers\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        )
        body = head.encode() + image + b"\r\n--peers--\r\n"
        return "Content-Type: multipart/form-data; boundary=peers", body

    return encode


def v2_tensor(image: bytes) -> tuple[str, bytes]:
    """A BYTES tensor of the Open Inference Protocol with the binary extension."""
    data = len(image).to_bytes(4, "little") + image
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}
    outputs = [{"name": "answer", "parameters": {"binary_data": False}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    return f"Inference-Header-Content-Length: {len(head)}", head + data


@dataclass(frozen=True)
class Peer:
    """One server.

    requirements  what pip installs, besides ONNX Runtime and what CLQ's own code needs; none: it
                  runs in the environment of this program
    command       arguments of python; {port} and {workers} are filled in
    encode        how it wants its image
    detections    where they are in its answer
    """

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    encode: Encode
    detections: Decode = itemgetter("detections")
    path: str = "/detect"


@dataclass(frozen=True)
class Manner:
    """How a peer runs the model: processes, threads of a session (0 = default), largest batch."""

    name: str
    workers: int
    threads: int
    batch: int


CLQ = Peer(
    "clq-serve",
    (),
    ("-c", "from clq_serve.cli import main; main()", "run", "--port", "{port}"),
    form("image"),
    path="/v1/detect",
)
UVICORN = ("-m", "uvicorn", "--port", "{port}")
OTHERS = (
    Peer(
        "FastAPI",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "python-multipart"),
        (*UVICORN, "--workers", "{workers}", "--no-access-log", "fastapi_server:app"),
        form("image"),
    ),
    Peer(
        "LitServe",
        ("litserve==0.2.19", "python-multipart"),
        ("litserve_server.py",),
        form("request"),
    ),
    Peer(
        "BentoML",
        ("bentoml==1.4.40",),
        ("-m", "bentoml", "serve", "--port", "{port}", "bentoml_server:Detect"),
        form("images"),
        lambda answer: answer[0]["detections"],
    ),
    Peer("Ray Serve", ("ray[serve]==2.60.0",), ("ray_server.py",), raw),
    Peer(
        "PyTriton",
        ("nvidia-pytriton==0.7.0",),
        ("pytriton_server.py",),
        v2_tensor,
        lambda answer: json.loads(answer["outputs"][0]["data"][0])["detections"],
        "/v2/models/detect/infer",
    ),
)
MANNERS = (
    Manner("", workers=1, threads=0, batch=4),
    Manner(", worker per core", workers=CORES, threads=1, batch=1),
)


class PeerFailed(Exception):
    """A peer cannot be installed, does not start or gives other boxes; the message says why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the environments")
    parser.add_argument("--seconds", type=int, default=20, help="for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", action="append", default=[], help="name of a peer; repeatable")
    arguments = parser.parse_args()
    unknown = set(arguments.only) - {peer.name for peer in OTHERS}
    if unknown:
        names = ", ".join(peer.name for peer in OTHERS)
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {names}")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    chosen = [peer for peer in OTHERS if not arguments.only or peer.name in arguments.only]
    rows = [(CLQ, Manner("", 1, 0, 1)), *((peer, manner) for peer in chosen for manner in MANNERS)]
    print(f"{len(SCREENS)} PNG screens of 1280 x 800, {CORES} cores, one server at a time, wrk for")
    print(
        f"{arguments.seconds} s after a warm-up; x = images/s of clq-serve / images/s of the peer"
    )
    heads = [f"{f'{c} clients: img/s':>17} p50 ms p99 ms     x" for c in arguments.clients]
    print(f"{'':28}", *heads, sep=" |")
    ours: dict[int, float] = {}
    for peer, manner in rows:
        name = peer.name + manner.name
        try:
            python = environment_of(peer, arguments.cache)
            with running(peer, manner, python) as port:
                check_answers(peer, port)
                found = {c: measure(peer, port, c, arguments.seconds) for c in arguments.clients}
        except PeerFailed as err:
            print(f"{name:28} | not measured: {err}", flush=True)
            continue
        if peer is CLQ:
            ours = {clients: result["rate"] for clients, result in found.items()}
        cells = [cell(result, ours.get(clients)) for clients, result in found.items()]
        print(f"{name:28}", *cells, sep=" |", flush=True)


def cell(result: dict[str, float], ours: float | None) -> str:
    rate, p50_ms, p99_ms = result["rate"], result["p50_ms"], result["p99_ms"]
    ratio = "" if ours is None else f"{ours / rate:.2f}"
    bad = [f"{result[kind]:.0f} {kind}" for kind in ("refused", "failed") if result[kind]]
    remark = f" ({', '.join(bad)}: the ms are of all)" if bad else ""
    return f"{rate:17.1f} {p50_ms:6.0f} {p99_ms:6.0f} {ratio:>5}{remark}"


def environment_of(peer: Peer, cache: Path) -> Path:
    """The python of the peer's environment, made and filled at the first call."""
    if not peer.requirements:
        return Path(sys.executable)
    folder = cache.resolve() / peer.name.replace(" ", "-").lower()
    python, done = folder / "bin/python", folder / "installed"
    pinned = (ROOT / "constraints.txt").read_text().split()
    common = [p for p in pinned if p.split("==")[0] in ("onnxruntime", "pillow")]
    wanted = "\n".join([*peer.requirements, *common, "pydantic", "numpy"])
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {', '.join(peer.requirements)} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    outcome = subprocess.run(
        [*command, *wanted.splitlines()], stderr=subprocess.PIPE, text=True, check=False
    )
    if outcome.returncode:
        raise PeerFailed(f"pip: {last_error(outcome.stderr)}")
    done.write_text(wanted)
    return python


@contextlib.contextmanager
def running(peer: Peer, manner: Manner, python: Path) -> Iterator[int]:
    """The port of the peer's server, which has answered; it is ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    variables = {
        "PYTHONPATH": f"{ROOT / 'serve'}:{PEERS}",
        # PyTriton starts an interpreter, which must find this one's libpython (its documentation)
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
        "CLQ_SERVE_REQUEST_TIMEOUT_S": str(ANSWER_TIMEOUT_S),  # as long as the peers are given
        "PEER_PORT": str(port),
        "PEER_WORKERS": str(manner.workers),
        "PEER_THREADS": str(manner.threads),
        "PEER_BATCH": str(manner.batch),
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "true",
    }
    arguments = [part.format(port=port, workers=manner.workers) for part in peer.command]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [python, *arguments],
            cwd=PEERS,
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for_answer(peer, port, server, log)
            yield port
        finally:
            end(server)


def wait_for_answer(peer: Peer, port: int, server: "subprocess.Popen[bytes]", log) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    problem = "no answer"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            answer(peer, port, SCREENS[0])
        except (OSError, ValueError) as err:  # not listening yet, or not ready yet
            problem = str(err)
            time.sleep(0.5)
        else:
            return
    log.seek(0)
    said = last_error(log.read().decode(errors="replace"))
    raise PeerFailed(f"does not start ({problem}); it said: {said}")


def end(server: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with contextlib.suppress(ProcessLookupError):  # what the server itself left running
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def last_error(text: str) -> str:
    """The last line that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["nothing"]
    errors = [line for line in lines if re.search(r"error\b|exception\b", line, re.IGNORECASE)]
    return (errors or lines)[-1][:300]


def answer(peer: Peer, port: int, screen: Path) -> list[dict]:
    header, body = peer.encode(screen.read_bytes())
    name, _, value = header.partition(": ")
    request = urllib.request.Request(f"http://127.0.0.1:{port}{peer.path}", body, {name: value})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=ANSWER_TIMEOUT_S) as reply:
        return peer.detections(json.load(reply))


def check_answers(peer: Peer, port: int) -> None:
    """Raises PeerFailed if the boxes are not those of the model run here."""
    for screen, wanted in expected_answers().items():
        found = answer(peer, port, screen)
        if len(found) != len(wanted) or not all(any(same(w, f) for f in found) for w in wanted):
            raise PeerFailed(f"{screen.name}: gives {len(found)} boxes, not CLQ's {len(wanted)}")


@functools.cache
def expected_answers() -> dict[Path, list[dict]]:
    """The detections in each screen, by the model run here."""
    sys.path.append(str(PEERS))
    from same import Model

    model = Model()
    return {screen: model.detect([screen.read_bytes()])[0] for screen in SCREENS}


def same(one: dict, other: dict) -> bool:
    near = all(abs(a - b) < 0.05 for a, b in zip(one["box"], other["box"], strict=True))
    return near and one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-3


def measure(peer: Peer, port: int, clients: int, seconds: int) -> dict[str, float]:
    """What wrk finds: rate in images/s, p50_ms, p99_ms, and how many were refused or failed."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / screen.name for screen in SCREENS]
        for path, screen in zip(paths, SCREENS, strict=True):
            header, body = peer.encode(screen.read_bytes())
            head = f"POST {peer.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{header}\r\n"
            path.write_bytes(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        load(port, clients, max(2, seconds // 4), paths)
        settle(peer, port)
        result = load(port, clients, seconds, paths)
        settle(peer, port)
    if result["good"] <= 0:
        raise PeerFailed(f"answered nothing to {clients} clients in {seconds} s")
    return result | {"rate": result["good"] / result["seconds"]}


def load(port: int, clients: int, seconds: int, requests: list[Path]) -> dict[str, float]:
    command = ["wrk", f"-d{seconds}s", f"-c{clients}", "-t1", "--timeout", f"{ANSWER_TIMEOUT_S}s"]
    command += ["-s", str(PEERS / "post.lua"), f"http://127.0.0.1:{port}", "--"]
    done = subprocess.run([*command, *map(str, requests)], capture_output=True, check=True)
    (line,) = re.findall(r"^result (.*)$", done.stdout.decode(), re.MULTILINE)
    result: dict[str, float] = json.loads(line)
    return result


def settle(peer: Peer, port: int) -> None:
    """Waits until what wrk left behind at its end is done: one more image is answered."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            answer(peer, port, SCREENS[0])
            return
        except OSError as err:
            if time.monotonic() > deadline:
                raise PeerFailed(f"answers no more after the load: {err}") from err
            time.sleep(0.5)


if __name__ == "__main__":
    main()
