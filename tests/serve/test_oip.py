"""The Open Inference Protocol through a real server, by both clients of tritonclient.

Every call of tritonclient that has a meaning for one server is here with each of its two clients.
"""

import asyncio
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from triton_clients import (
    Call,
    address,
    aio_call,
    image_input,
    picture,
    pixel_input,
    pixels,
    sync_call,
)
from tritonclient.utils import InferenceServerException

PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else
ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/oip.md"
OUTPUTS = ["num_dets", "boxes", "scores", "labels", "quality"]


@pytest.fixture(params=[sync_call, aio_call], ids=["sync", "aio"])
def call(request: pytest.FixtureRequest, server: str) -> Call:
    """call(method, ...) with a client of one kind against the shared server."""
    return functools.partial(request.param, server)


def test_probes(call: Call) -> None:
    assert call("is_server_live")
    assert call("is_server_ready")
    for name in ("tiny", "tiny_image"):
        assert call("is_model_ready", name)
        assert call("is_model_ready", name, "1")
        assert not call("is_model_ready", name, "2")
    assert not call("is_model_ready", "huge")


def test_images_of_different_sizes_come_back_in_their_own_pixels(call: Call) -> None:
    files = [picture(), picture(1, 96, 192, zoom=2), picture(0)]
    result = call("infer", "tiny_image", [image_input(*files)], request_id="of mine")
    assert result.get_response()["id"] == "of mine"
    assert result.as_numpy("num_dets").tolist() == [[3], [1], [0]]
    assert result.as_numpy("image_size").tolist() == [[96, 64], [384, 192], [96, 64]]
    boxes = result.as_numpy("boxes")
    assert boxes.shape == (3, 3, 4)
    assert boxes[0].tolist() == [[0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 96, 32]]
    assert boxes[1].tolist() == [[0, 0, 64, 64], [0] * 4, [0] * 4]
    assert result.as_numpy("labels").tolist() == [[0, 1, 2], [0, -1, -1], [-1, -1, -1]]
    assert (boxes[2] == 0).all()


def test_prepared_pixels_come_back_in_their_own_pixels(call: Call) -> None:
    batch = np.stack([pixels(2), pixels(3)])
    result = call("infer", "tiny", [pixel_input(batch)], "1")
    assert [output["name"] for output in result.get_response()["outputs"]] == OUTPUTS
    assert result.as_numpy("num_dets").tolist() == [[2], [3]]
    assert result.as_numpy("boxes")[1].tolist() == [
        [0, 0, 32, 32],
        [32, 0, 64, 32],
        [64, 0, 96, 32],
    ]
    np.testing.assert_allclose(
        result.as_numpy("scores")[1], np.array([250, 200, 150]) / 255, atol=1e-4
    )
    np.testing.assert_allclose(result.as_numpy("quality")[1], 1, atol=1e-4)


def test_metadata(call: Call) -> None:
    server = call("get_server_metadata")
    assert server["name"] == "clq"
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(server["extensions"])
    model = call("get_model_metadata", "tiny")
    assert model == call("get_model_metadata", "tiny", "1")
    assert (model["name"], model["versions"]) == ("tiny", ["1"])
    assert model["platform"] == "onnxruntime_onnx"
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert {o["name"]: (o["datatype"], o["shape"]) for o in model["outputs"]} == {
        "num_dets": ("INT32", [-1, 1]),
        "boxes": ("FP32", [-1, -1, 4]),
        "scores": ("FP32", [-1, -1]),
        "labels": ("INT32", [-1, -1]),
        "quality": ("FP32", [-1, -1]),
    }
    image = call("get_model_metadata", "tiny_image")
    assert image["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert image["outputs"][:-1] == model["outputs"]
    assert image["outputs"][-1] == {"name": "image_size", "datatype": "INT32", "shape": [-1, 2]}


@pytest.mark.parametrize("name", ["tiny", "tiny_image"])
def test_the_configuration_agrees_with_the_metadata(call: Call, name: str) -> None:
    model, config = call("get_model_metadata", name), call("get_model_config", name, "1")
    assert (config["name"], config["platform"]) == (name, model["platform"])
    batch = [-1] if config["max_batch_size"] else []
    for side in ("input", "output"):
        assert [
            {
                "name": port["name"],
                "datatype": port["data_type"].removeprefix("TYPE_").replace("STRING", "BYTES"),
                "shape": batch + port["dims"],
            }
            for port in config[side]
        ] == model[f"{side}s"]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"


def test_the_index_has_every_model_under_both_names(call: Call) -> None:
    ready = {"version": "1", "state": "READY", "reason": ""}
    index = call("get_model_repository_index")
    assert index == [{"name": "tiny"} | ready, {"name": "tiny_image"} | ready]


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary-in", "json-in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary-out", "json-out"])
def test_binary_and_json_tensors_give_the_same(
    call: Call, binary_in: bool, binary_out: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    given = pixel_input(pixels()[None], binary=binary_in)
    result = call("infer", "tiny", [given], outputs=outputs)
    for output in result.get_response()["outputs"]:
        assert ("data" in output) is not binary_out
    expected = call("infer", "tiny", [pixel_input(pixels()[None])])
    for name in OUTPUTS:
        np.testing.assert_array_equal(result.as_numpy(name), expected.as_numpy(name))
        assert result.as_numpy(name).dtype == expected.as_numpy(name).dtype


@pytest.mark.parametrize("coding_out", [None, "gzip", "deflate"])
@pytest.mark.parametrize("coding_in", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression_changes_nothing(
    call: Call, coding_in: str | None, coding_out: str | None, binary: bool
) -> None:
    result = call(
        "infer",
        "tiny_image",
        [image_input(picture())],
        outputs=[triton.InferRequestedOutput("boxes", binary_data=binary)],
        request_compression_algorithm=coding_in,
        response_compression_algorithm=coding_out,
    )
    assert result.as_numpy("boxes").tolist() == [
        [[0, 0, 32, 32], [32, 0, 64, 32], [64, 0, 96, 32]],
    ]


def test_outputs_are_those_named_in_that_order(call: Call) -> None:
    wanted = ["scores", "image_size"]
    outputs = [
        triton.InferRequestedOutput("scores", binary_data=False),
        triton.InferRequestedOutput("image_size"),
    ]
    result = call("infer", "tiny_image", [image_input(picture())], outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == wanted
    assert result.as_numpy("image_size").tolist() == [[96, 64]]
    assert result.as_numpy("boxes") is None


def test_nothing_found_is_an_empty_tensor(call: Call) -> None:
    result = call("infer", "tiny_image", [image_input(picture(0))])
    assert result.as_numpy("num_dets").tolist() == [[0]]
    assert result.as_numpy("boxes").shape == (1, 0, 4)
    assert result.as_numpy("scores").shape == (1, 0)


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({"score_threshold": 0.7}, [0, 1]),
        ({"max_detections": 1}, [0]),
        ({"classes": "blue, green"}, [1, 2]),
        ({"classes": "0, blue"}, [0, 2]),
        ({"classes": 1}, [1]),
        ({"iou_threshold": 0}, [0, 1, 2]),
        ({"triton_of_somebody": "x"}, [0, 1, 2]),
    ],
    ids=str,
)
def test_parameters_choose_what_is_found(call: Call, parameters: dict, labels: list[int]) -> None:
    for name, given in (
        ("tiny", pixel_input(pixels()[None])),
        ("tiny_image", image_input(picture())),
    ):
        result = call("infer", name, [given], parameters=parameters)
        assert result.as_numpy("labels").tolist() == [labels]


@pytest.mark.parametrize(
    "parameters",
    [
        {"score_threshold": 1.1},
        {"score_threshold": "0.5"},
        {"score_threshold": True},
        {"iou_threshold": -0.1},
        {"max_detections": 0},
        {"max_detections": 1001},
        {"max_detections": 1.5},
        {"classes": "purple"},
        {"classes": ""},
        {"classes": 3},
        {"classes": True},
        {"score_treshold": 0.5},
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named(call: Call, parameters: dict) -> None:
    (name,) = parameters
    with pytest.raises(InferenceServerException, match=name) as caught:
        call("infer", "tiny", [pixel_input(pixels()[None])], parameters=parameters)
    assert caught.value.status() == "400"
    assert "accepted" in caught.value.message()


def test_sequences_and_priorities_of_the_client_are_accepted(call: Call) -> None:
    given = [pixel_input(pixels()[None])]
    for options in ({"priority": 1}, {"priority": 2}, {"sequence_id": 7, "sequence_start": True}):
        result = call("infer", "tiny", given, timeout=50_000_000, **options)
        assert result.as_numpy("num_dets").tolist() == [[3]]


def test_a_timeout_of_the_request_is_its_deadline(call: Call) -> None:
    with pytest.raises(InferenceServerException, match="no result within") as caught:
        call("infer", "tiny_image", [image_input(picture())], timeout=1)
    assert caught.value.status() == "504"


def test_classification_names_the_best_detections(call: Call) -> None:
    for binary in (True, False):
        output = triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)
        files = [picture(), picture(1)]
        result = call("infer", "tiny_image", [image_input(*files)], outputs=[output])
        (described,) = result.get_response()["outputs"]
        assert (described["datatype"], described["shape"]) == ("BYTES", [2, 2])
        lines = [
            line if isinstance(line, str) else line.decode()
            for line in result.as_numpy("scores").ravel()
        ]
        assert [line.partition(":")[2] for line in lines] == ["0:red", "1:green", "0:red", ""]
        assert float(lines[0].partition(":")[0]) == pytest.approx(250 / 255, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "version", "given", "status", "named"),
    [
        ("huge", "", pixel_input(pixels()[None]), "404", "unknown model: 'huge' is not found"),
        ("tiny", "2", pixel_input(pixels()[None]), "404", "'tiny' version '2'"),
        ("tiny", "one", pixel_input(pixels()[None]), "404", "not a whole number"),
        ("tiny", "", image_input(picture()), "400", "exactly one, 'images'"),
        ("tiny_image", "", pixel_input(pixels()[None]), "400", "exactly one, 'image'"),
        ("tiny", "", pixel_input(pixels()), "400", r"accepted: \[N, H, W, 3\]"),
        ("tiny", "", pixel_input(pixels()[None, :, :100]), "400", "multiples of 64, the shorter"),
        ("tiny", "", pixel_input(pixels(0, 192, 192)[None]), "400", "the shorter at most 128"),
        ("tiny", "", pixel_input(pixels(0, 64, 256)[None]), "400", "the longer at most 192"),
        ("tiny", "", pixel_input(pixels()[None, :0]), "400", "multiples of 64"),
        ("tiny", "", pixel_input(pixels()[None][:0]), "400", "0 images; accepted: 1 to 32"),
        ("tiny_image", "", image_input(*[b"x"] * 33), "400", "33 images; accepted: 1 to 32"),
        ("tiny_image", "", image_input(b"text"), "415", "not an image of an accepted format"),
        ("tiny_image", "", image_input(picture(), picture()[:99]), "422", "image 1: the PNG file"),
    ],
)  # fmt: skip
def test_a_refused_inference_says_why(
    call: Call, name: str, version: str, given: triton.InferInput, status: str, named: str
) -> None:
    with pytest.raises(InferenceServerException, match=named) as caught:
        call("infer", name, [given], version)
    assert caught.value.status() == status


def test_a_wrong_datatype_is_refused(call: Call) -> None:
    array = pixels()[None].astype(np.float32)
    tensor = triton.InferInput("images", list(array.shape), "FP32").set_data_from_numpy(array)
    with pytest.raises(InferenceServerException, match="datatype FP32; accepted: UINT8"):
        call("infer", "tiny", [tensor])


@pytest.mark.parametrize(
    "outputs", [["dets"], ["boxes", "boxes"], ["boxes", "image_size"]], ids=str
)
def test_an_unknown_output_is_refused(call: Call, outputs: list[str]) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in outputs]
    with pytest.raises(InferenceServerException, match="tiny has: num_dets, boxes") as caught:
        call("infer", "tiny", [pixel_input(pixels()[None])], outputs=wanted)
    assert caught.value.status() == "400"


def test_classification_of_anything_but_scores_is_refused(call: Call) -> None:
    output = triton.InferRequestedOutput("boxes", class_count=1)
    with pytest.raises(InferenceServerException, match="'scores' only"):
        call("infer", "tiny", [pixel_input(pixels()[None])], outputs=[output])


def test_shared_memory_is_refused(call: Call) -> None:
    tensor = triton.InferInput("images", [1, 64, 128, 3], "UINT8")
    tensor.set_shared_memory("region", 24576)
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        call("infer", "tiny", [tensor])
    for kind in ("system", "cuda"):
        with pytest.raises(InferenceServerException, match="shared memory") as caught:
            call(f"get_{kind}_shared_memory_status")
        assert caught.value.status() == "403"
        with pytest.raises(InferenceServerException, match="shared memory"):
            call(f"unregister_{kind}_shared_memory", "region")
    with pytest.raises(InferenceServerException, match="shared memory"):
        call("register_system_shared_memory", "region", "/key", 64)
    with pytest.raises(InferenceServerException, match="shared memory"):
        call("register_cuda_shared_memory", "region", b"handle", 0, 64)


def test_statistics_count_requests_images_and_failures(call: Call, start_server) -> None:
    server = start_server()
    own = functools.partial(call.func, server)
    (before,) = own("get_inference_statistics", "tiny_image", "1")["model_stats"]
    assert (before["inference_count"], before["last_inference"]) == (0, 0)
    for files in ([picture()], [picture(), picture(1)]):
        own("infer", "tiny_image", [image_input(*files)])
    with pytest.raises(InferenceServerException):
        own("infer", "tiny_image", [image_input(b"?")])
    own("infer", "tiny", [pixel_input(pixels()[None])])
    everything = {s["name"]: s for s in own("get_inference_statistics")["model_stats"]}
    assert list(everything) == ["tiny", "tiny_image"]
    stats = everything["tiny_image"]
    assert stats == own("get_inference_statistics", "tiny_image")["model_stats"][0]
    assert (stats["version"], stats["inference_count"], stats["execution_count"]) == ("1", 3, 3)
    times = stats["inference_stats"]
    assert (times["success"]["count"], times["fail"]["count"]) == (2, 1)
    assert times["fail"]["ns"] > 0
    assert [times[kind]["count"] for kind in ("cache_hit", "cache_miss")] == [0, 0]
    stages = ("queue", "compute_input", "compute_infer", "compute_output")
    assert all(times[stage]["count"] == 2 and times[stage]["ns"] > 0 for stage in stages)
    assert sum(times[stage]["ns"] for stage in stages) <= times["success"]["ns"]
    assert [b["batch_size"] for b in stats["batch_stats"]] == [1]
    assert stats["batch_stats"][0]["compute_infer"]["count"] == 3
    assert everything["tiny"]["inference_count"] == 1


def test_asynchronous_inferences_each_get_their_own_answer(server: str) -> None:
    with triton.InferenceServerClient(address(server), concurrency=4) as client:
        pending = [
            client.async_infer("tiny_image", [image_input(picture(n % 4))]) for n in range(12)
        ]
        found = [p.get_result(timeout=PATIENCE_S).as_numpy("num_dets").item() for p in pending]
    assert found == [n % 4 for n in range(12)]

    async def together() -> list[int]:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            results = await asyncio.gather(
                *(client.infer("tiny_image", [image_input(picture(n % 4))]) for n in range(12))
            )
        return [result.as_numpy("num_dets").item() for result in results]

    assert asyncio.run(together()) == found


def test_what_perf_analyzer_reads_is_there(call: Call) -> None:
    """Its calls in its order: it is in no package, hence this list, from its sources."""
    assert "statistics" in call("get_server_metadata")["extensions"]
    model, config = call("get_model_metadata", "tiny"), call("get_model_config", "tiny")
    assert config["max_batch_size"] >= 1
    assert "dynamic_batching" in config
    assert "sequence_batching" not in config
    assert "ensemble_scheduling" not in config
    assert not config.get("response_cache", {}).get("enable", False)
    assert not config.get("model_transaction_policy", {}).get("decoupled", False)
    shape = [2, *(side if side > 0 else 64 for side in model["inputs"][0]["shape"][1:])]
    rng = np.random.default_rng(0)
    before = call("get_inference_statistics", "tiny")["model_stats"][0]
    for _ in range(3):
        batch = rng.integers(0, 256, shape, np.uint8)
        call("infer", "tiny", [pixel_input(batch)])
    after = call("get_inference_statistics", "tiny")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 6
    assert 1 <= after["execution_count"] - before["execution_count"] <= 6
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        counted = [stats["inference_stats"][stage] for stats in (before, after)]
        assert counted[1]["count"] - counted[0]["count"] == 3
        assert counted[1]["ns"] >= counted[0]["ns"]


@pytest.mark.parametrize("request_by", [sync_call, aio_call], ids=["sync", "aio"])
def test_the_clients_see_what_v1_detect_sees(builtin_server: str, request_by: Call) -> None:
    """The built-in model on a screen of the tests: boxes, scores, labels and qualities."""
    data = (ROOT / "tests/data/screens/docs.png").read_bytes()
    headers = {"Content-Type": "image/png"}
    url = f"{builtin_server}/v1/detect"
    answer = httpx.post(url, content=data, headers=headers, timeout=PATIENCE_S).json()
    found, image = answer["detections"], answer["image"]
    assert len(found) > 10
    result = request_by(builtin_server, "infer", "webui-nano_image", [image_input(data)])
    assert result.as_numpy("num_dets").tolist() == [[len(found)]]
    assert result.as_numpy("image_size").tolist() == [[image["width"], image["height"]]]
    for name, key, rounded in (
        ("boxes", "box", 0.001),
        ("scores", "score", 1e-6),
        ("quality", "quality", 1e-6),
        ("labels", "class_id", 0),
    ):
        expected = np.array([detection[key] for detection in found])
        np.testing.assert_allclose(
            result.as_numpy(name)[0], expected, rtol=1e-6, atol=0.51 * rounded
        )


@pytest.mark.parametrize("number", range(2))
def test_the_examples_of_the_document_run(builtin_server: str, number: int) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(examples) == 2
    code = examples[number].replace("127.0.0.1:8000", address(builtin_server))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 3


def test_the_curl_line_of_the_document_prints_what_it_shows(builtin_server: str) -> None:
    text = DOCUMENT.read_text()
    ((line, shown),) = re.findall(r"```console\n\$ (curl .*)\n(\{.*)\n```", text)
    (url,) = re.findall(r"'http://127.0.0.1:8000(.*?)'", line)
    headers = dict(re.findall(r"-H '([^:]*): ([^']*)'", line))
    (path,) = re.findall(r"--data-binary @(\S+)", line)
    assert line.startswith("curl -s --data-binary")
    data = (ROOT / path).read_bytes()
    posted = httpx.post(builtin_server + url, content=data, headers=headers, timeout=PATIENCE_S)
    answer = posted.json()
    expected = json.loads(shown)
    assert list(answer) == list(expected)
    for ours, theirs in zip(answer["outputs"], expected["outputs"], strict=True):
        assert ours["data"] == pytest.approx(
            theirs["data"], abs=0.5 if ours["name"] == "boxes" else 1e-3
        )
        assert {**ours, "data": 0} == {**theirs, "data": 0}
