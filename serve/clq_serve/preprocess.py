"""From the bytes of an image file to the model's input, and from its boxes back to the image.

This is the only preprocessing of the project: the service, the parity check of the exporter and the
evaluation and augmentation of the trainer all use it.  Boxes are x1 y1 x2 y2; pixels are uint8 RGB,
(H, W, 3), upright (EXIF orientation already applied).
"""

import io
import logging
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clq_serve.errors import (
    CorruptImage,
    ImageTooLarge,
    TooManyFrames,
    TruncatedImage,
    UnsupportedImage,
)
from clq_serve.image_bytes import (
    ACCEPTED_FORMATS,
    MAX_JPEG_SCANS,
    ends_early,
    jpeg_has_too_many_scans,
    png_is_intact,
    sniff_format,
    webp_size,
)

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Boxes = npt.NDArray[np.float32]  # (..., 4) x1 y1 x2 y2
Colour = tuple[int, int, int]  # RGB, 0..255 each

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF 2.32, tag 0x0112: what brings the stored rows and columns upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # those of them that swap width and height
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")
_pillow_globals = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an uploaded image may be at most, checked on its header before any pixel is decoded.

    max_aspect  longer side over shorter side
    max_frames  of an animation; only its first frame is ever decoded
    """

    max_pixels: int = 50_000_000
    max_side_px: int = 16_384
    max_aspect: float = 200.0
    max_frames: int = 1_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an image file says: its format, and its size as stored, pixels."""

    format: str
    width: int
    height: int
    frames: int


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright image.

    pixels               (H, W, 3) uint8 RGB
    format               what the bytes are, one of ACCEPTED_FORMATS
    orientation_applied  whether the EXIF orientation turned or mirrored it
    """

    pixels: Pixels
    format: str
    orientation_applied: bool


@dataclass(frozen=True, slots=True)
class InputRule:
    """How an image becomes the input of a model; `Manifest.input.rule` makes it from a manifest.

    shorter_px, longer_px  the resized image has at most these sides
    upscale                whether an image that is smaller than that is enlarged
    multiple               the padded sides are whole multiples of it, pixels
    pad_value              colour of the padding, right and bottom
    background             colour that shows through where the image is transparent
    largest_scale          of the resizing, above 0; None: as large as the sides allow
    """

    shorter_px: int
    longer_px: int
    upscale: bool
    multiple: int
    pad_value: Colour
    background: Colour
    largest_scale: float | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """The three sizes of one image on its way into the model, pixels."""

    width: int
    height: int
    resized_width: int
    resized_height: int
    padded_width: int
    padded_height: int


def probe_image(data: bytes, limits: ImageLimits) -> ImageHeader:
    """The header of an image file, once it has passed every check that needs no decoding.

    Raises the same as `decode_image`.
    """
    image, header = _open_checked(data, limits)
    image.close()
    return header


def upright_size(path: Path, limits: ImageLimits) -> tuple[int, int]:
    """Width and height that `decode_image` gives the image file at `path`, from its header alone.

    Raises OSError, UnsupportedImage, ImageTooLarge, TruncatedImage or CorruptImage; a header says
    nothing of damaged pixels.
    """
    with path.open("rb") as file:
        kind = sniff_format(file.read(256))
        if kind is None:
            raise _unsupported()
        try:
            with _pillow_quiet():
                image = Image.open(file, formats=(kind,))
        except Exception as err:
            raise _undecodable(path.read_bytes(), kind) from err
        with image:
            _check_size(image.width, image.height, limits)
            # A PNG without this key would be decoded whole to look for it behind the pixels.
            turned = "exif" in image.info and _orientation(image) in _SIDEWAYS
            return (image.height, image.width) if turned else image.size


def decode_image(data: bytes, limits: ImageLimits, background: Colour) -> DecodedImage:
    """The upright RGB pixels of an image file; of an animation, its first frame.

    Grey of 16 bits is scaled to 8, of colours of 16 bits the upper 8 are taken, transparency is
    composited on `background`, ICC profiles are ignored.

    Raises UnsupportedImage (not one of ACCEPTED_FORMATS, judged by the bytes alone), ImageTooLarge
    or TooManyFrames (judged by the header, before decoding), TruncatedImage or CorruptImage.
    """
    image, header = _open_checked(data, limits)
    with image:
        try:
            image.load()
            rgb = _to_rgb(image, background)
        except (MemoryError, UnsupportedImage):
            raise
        except Exception as err:
            raise _undecodable(data, header.format) from err
        turn = _UPRIGHT.get(_orientation(image))
        upright = rgb if turn is None else rgb.transpose(turn)
        return DecodedImage(np.asarray(upright), header.format, turn is not None)


def plan(width: int, height: int, rule: InputRule) -> Geometry:
    """The resized and padded size of a width x height image.

    One scale for both axes, then each side is rounded half up and is at least 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no content")
    scale = min(rule.shorter_px / min(width, height), rule.longer_px / max(width, height))
    if not rule.upscale:
        scale = min(scale, 1.0)
    if rule.largest_scale is not None:
        scale = min(scale, rule.largest_scale)
    resized_width = max(1, math.floor(width * scale + 0.5))
    resized_height = max(1, math.floor(height * scale + 0.5))
    return Geometry(
        width=width,
        height=height,
        resized_width=resized_width,
        resized_height=resized_height,
        padded_width=-(-resized_width // rule.multiple) * rule.multiple,
        padded_height=-(-resized_height // rule.multiple) * rule.multiple,
    )


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """`pixels` as (height, width, 3): Pillow's bilinear filter, antialiased when shrinking."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize(
        (width, height), Image.Resampling.BILINEAR, reducing_gap=None
    )
    return np.asarray(image)


def prepare(pixels: Pixels, rule: InputRule) -> tuple[Pixels, Geometry]:
    """The input of the model: resized, then padded right and bottom.

    pixels   (H, W, 3) uint8 RGB, upright
    returns  (padded_height, padded_width, 3) uint8, and the sizes needed to map boxes back

    Raises ValueError if `pixels` is something else.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}; accepted: uint8 of shape (H, W, 3)"
        )
    geometry = plan(pixels.shape[1], pixels.shape[0], rule)
    resized = resize(pixels, geometry.resized_width, geometry.resized_height)
    padded = np.empty((geometry.padded_height, geometry.padded_width, 3), np.uint8)
    fill_padded(padded, resized, rule.pad_value)
    return padded, geometry


def fill_padded(canvas: Pixels, pixels: Pixels, colour: Colour) -> None:
    """Writes `pixels` into the upper left corner of `canvas`, and `colour` everywhere else."""
    height, width = pixels.shape[:2]
    # Assigning 3 bytes at a time is 60 times slower than whole rows.
    row = np.tile(np.asarray(colour, np.uint8), (canvas.shape[1], 1))
    canvas[:height, :width] = pixels
    canvas[:height, width:] = row[width:]
    canvas[height:] = row


def boxes_to_original(boxes: Boxes, geometry: Geometry) -> Boxes:
    """`boxes` of the padded input, (..., 4), in pixels of the original image and clipped to it."""
    across = geometry.width / geometry.resized_width
    down = geometry.height / geometry.resized_height
    scaled = boxes.astype(np.float64) * (across, down, across, down)
    limit = (geometry.width, geometry.height, geometry.width, geometry.height)
    return np.clip(scaled, 0.0, limit).astype(np.float32)


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Pillow without its warnings and without its own pixel limit.

    Both are process-wide, hence the lock, and hence only header work may happen inside.  The limit
    is off because above it Pillow raises without telling the size; `_check_size` is the limit that
    counts.
    """
    with _pillow_globals, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open_checked(data: bytes, limits: ImageLimits) -> tuple[Image.Image, ImageHeader]:
    """The image, opened but not decoded, and its header; the cheapest checks come first."""
    kind = sniff_format(data)
    if kind is None:
        raise _unsupported()
    size = webp_size(data) if kind == "WEBP" else None
    if size is not None:
        _check_size(*size, limits)
    # Pillow's decoders raise whatever they stumble over (OSError, SyntaxError, struct.error,
    # ValueError, IndexError, ...), so the bytes of a stranger need broad clauses.
    try:
        with _pillow_quiet():
            image = Image.open(io.BytesIO(data), formats=(kind,))
            frames = getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as err:
        raise _undecodable(data, kind) from err
    _check_size(image.width, image.height, limits)
    if frames > limits.max_frames:
        raise TooManyFrames(
            f"the animation has {frames} frames; {limits.max_frames} are accepted",
            extra={"limit": limits.max_frames, "observed": frames},
        )
    if kind == "PNG" and not png_is_intact(data):  # Pillow does not look at these checksums
        raise _undecodable(data, kind)
    if kind == "JPEG" and jpeg_has_too_many_scans(data):
        raise CorruptImage(f"the JPEG file has more than {MAX_JPEG_SCANS} scans")
    return image, ImageHeader(kind, image.width, image.height, frames)


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise CorruptImage(f"the header says {width} x {height} pixels")
    shorter, longer = sorted((width, height))
    if longer > limits.max_side_px:
        raise ImageTooLarge(
            f"the image is {width} x {height} pixels; a side may have {limits.max_side_px} at most",
            extra={"limit": limits.max_side_px, "observed": longer},
        )
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width * height} pixels; {limits.max_pixels} are accepted",
            extra={"limit": limits.max_pixels, "observed": width * height},
        )
    if longer > limits.max_aspect * shorter:
        raise ImageTooLarge(
            f"the image is {width} x {height} pixels; the longer side may be {limits.max_aspect:g} "
            "times the shorter at most",
            extra={"limit": limits.max_aspect, "observed": round(longer / shorter, 3)},
        )


def _to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _sixteen_bit_to_rgb(image, background)
    if image.mode not in _EIGHT_BIT_MODES:
        raise UnsupportedImage(
            f"pixels of type {image.mode!r} are not accepted; accepted: grey, palette, RGB, CMYK, "
            "with or without transparency"
        )
    if image.has_transparency_data:
        return Image.alpha_composite(  # what is below has no name, so that it is let go of at once
            Image.new("RGBA", image.size, (*background, 255)), _converted(image, "RGBA")
        ).convert("RGB")
    return _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """The image in that mode; itself if it is, where `Image.convert` would copy all its pixels."""
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bit_to_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """Scaled by 255 / 65535; `Image.convert` would clip everything above 255 to white."""
    wide = np.asarray(image)
    if wide.dtype.itemsize > 2:  # mode I, which holds 16 bits in 32
        wide = wide.clip(0, 65535).astype(np.uint16)
    narrow = ((np.arange(65536) + 128) // 257).astype(np.uint8)[wide]  # (H, W), 1 byte a pixel
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(narrow).convert("RGB")
    rgb = np.repeat(narrow[..., None], 3, axis=2)  # (H, W, 3)
    rgb[wide == transparent] = background
    return Image.fromarray(rgb)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 if there is none or if the metadata are damaged.

    Damaged metadata say nothing about the pixels: every viewer shows such an image as it is stored.
    """
    try:
        with _pillow_quiet():
            value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        log.debug("EXIF could not be read; the image is taken as stored", exc_info=True)
        return 1
    return value if isinstance(value, int) else 1


def _unsupported() -> UnsupportedImage:
    return UnsupportedImage(
        "the bytes are not an image of an accepted format; accepted: "
        + ", ".join(ACCEPTED_FORMATS),
        extra={"accepted": list(ACCEPTED_FORMATS)},
    )


def _undecodable(data: bytes, kind: str) -> TruncatedImage | CorruptImage:
    if ends_early(data, kind):
        return TruncatedImage(f"the {kind} file stops before its end, after {len(data)} bytes")
    return CorruptImage(f"the bytes start like a {kind} file but do not decode")
