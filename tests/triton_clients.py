"""tritonclient, both kinds of it, and the tensors that the tests send with them."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image

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
