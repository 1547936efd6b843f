"""The Open Inference Protocol through a real server, by tritonclient (sync and asyncio) and bare.

Every call of tritonclient that the protocol has is here with both clients.
"""

import asyncio
import functools
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image

LENGTH = "Inference-Header-Content-Length"
PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else
OUTPUTS = ["num_dets", "boxes", "scores", "labels", "quality"]

send = functools.partial(httpx.post, timeout=PATIENCE_S)
get = functools.partial(httpx.get, timeout=PATIENCE_S)

Call = Callable[..., Any]


def pixels(colours: int = 3, height: int = 64, width: int = 128) -> np.ndarray:
    """A red, a green and a blue cell of falling strength on black, (height, width, 3)."""
    made = np.zeros((height, width, 3), np.uint8)
    for index in range(colours):
        made[:32, 32 * index : 32 * index + 32, index] = 250 - 50 * index
    return made


def picture(colours: int = 3, height: int = 64, width: int = 96, zoom: int = 1) -> bytes:
    """The same as a PNG file, each of its pixels as zoom x zoom."""
    file = io.BytesIO()
    made = pixels(colours, height, width).repeat(zoom, 0).repeat(zoom, 1)
    Image.fromarray(made).save(file, "PNG")
    return file.getvalue()


def image_input(*files: bytes, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, object), binary_data=binary)
    return tensor


def pixel_input(array: np.ndarray, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("images", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def address(server: str) -> str:
    return server.removeprefix("http://")


def sync_call(server: str, method: str, *args: Any, **options: Any) -> Any:
    with triton.InferenceServerClient(address(server)) as client:
        return getattr(client, method)(*args, **options)


def aio_call(server: str, method: str, *args: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(run())


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
