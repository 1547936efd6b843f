"""The bytes to send for whatever a caller calls an image."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

ImageInput: TypeAlias = Union[
    "str",
    "os.PathLike[str]",
    "bytes",
    "bytearray",
    "memoryview",
    "BinaryIO",
    "Image.Image",
    "NDArray[np.uint8]",
]

_ACCEPTED = (
    "accepted: a path, bytes, a file opened in binary mode, a PIL image, "
    "a uint8 numpy array (H, W), (H, W, 3) RGB or (H, W, 4) RGBA"
)
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_RGB_FIRST = frozenset({"CMYK", "YCbCr", "HSV", "LAB", "RGBX"})


def image_bytes(image: ImageInput) -> bytes:
    """The file to send: files and bytes as they are, pixels as PNG.

    PNG of pixels carries no EXIF, so that the boxes are in the very pixels the caller holds.  A
    file object is read from where it stands to its end.

    Raises OSError (a path that cannot be read) and TypeError (anything else than an image).
    """
    # Whoever holds a PIL image or an array has imported the library: nothing is imported to look.
    pil = sys.modules.get("PIL.Image")
    numpy = sys.modules.get("numpy")
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if pil is not None and isinstance(image, pil.Image):
        return _png_of_picture(image)
    if numpy is not None and isinstance(image, numpy.ndarray):
        return _png_of_array(image)
    if hasattr(image, "read"):
        data = image.read()
        if isinstance(data, bytes):
            return data
        raise TypeError(f"the file gives {type(data).__name__}, not bytes; open it with 'rb'")
    raise TypeError(f"{type(image).__name__} is not an image; {_ACCEPTED}")


def _png_of_picture(picture: "Image.Image") -> bytes:
    if picture.mode in _RGB_FIRST:
        picture = picture.convert("RGB")
    if picture.mode not in _PNG_MODES:
        modes = ", ".join(sorted(_PNG_MODES | _RGB_FIRST))
        raise TypeError(f"a PIL image of mode {picture.mode} cannot be sent; accepted: {modes}")
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1, exif=b"")
    return file.getvalue()


def _png_of_array(array: "NDArray[np.uint8]") -> bytes:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != "uint8" or not fits or array.size == 0:
        shape = f"{array.dtype} array of shape {array.shape}"
        raise TypeError(f"{shape} is not an image; {_ACCEPTED}")
    try:
        from PIL import Image
    except ImportError as error:
        message = 'sending an array needs Pillow: pip install "clq-client[cli]"'
        raise TypeError(message) from error
    return _png_of_picture(Image.fromarray(array))
