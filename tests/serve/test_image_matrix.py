"""Every pixel type in every format becomes the RGB that a plain calculation gives.

The expected pixels are calculated here, value by value, from what was put into the file;
files that Pillow cannot write (PNG: interlaced, 16 bits a colour, 1, 2 and 4 bits; BMP: with alpha)
are built here.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from clq_serve.preprocess import ImageLimits, decode_image

BACKGROUND = (10, 200, 30)
WIDTH, HEIGHT = 48, 32
LOSSY_TOLERANCE = 14  # of 255, for smooth pictures at a high quality

Pixel = tuple[int, ...]
Rule = Callable[[Pixel], tuple[float, float, float]]


def decoded(data: bytes) -> np.ndarray:
    return decode_image(data, ImageLimits(), BACKGROUND).pixels.astype(int)


def assert_close(data: bytes, expected: list[list[tuple[float, ...]]], tolerance: float) -> None:
    found = decoded(data)
    wanted = np.array(expected)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance


def over_background(red: float, green: float, blue: float, alpha: int) -> tuple[float, ...]:
    shown = alpha / 255
    return tuple(
        shown * colour + (1 - shown) * below
        for colour, below in zip((red, green, blue), BACKGROUND, strict=True)
    )


def ramp(x: int, y: int, channel: int) -> int:
    """Smooth and different along both axes and in each channel, 0..255."""
    return (x * 130 // WIDTH + y * 90 // HEIGHT + 11 * channel) % 256


def picture(channels: int) -> list[list[Pixel]]:
    return [
        [tuple(ramp(x, y, c) for c in range(channels)) for x in range(WIDTH)] for y in range(HEIGHT)
    ]


def pillow(mode: str, channels: int) -> Image.Image:
    image = Image.new(mode, (WIDTH, HEIGHT))
    for y, row in enumerate(picture(channels)):
        for x, pixel in enumerate(row):
            image.putpixel((x, y), pixel if channels > 1 else pixel[0])
    return image


MODES: dict[str, tuple[int, Rule]] = {
    "L": (1, lambda p: (p[0], p[0], p[0])),
    "LA": (2, lambda p: over_background(p[0], p[0], p[0], p[1])),
    "RGB": (3, lambda p: (p[0], p[1], p[2])),
    "RGBA": (4, lambda p: over_background(p[0], p[1], p[2], p[3])),
}
SAVED = {
    "PNG": {},
    "JPEG": {"quality": 97, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 97, "subsampling": "4:4:4"},
    "BMP": {},
}
# What a format cannot hold: JPEG has no alpha, and Pillow writes none into BMP.
PAIRS = [
    (kind, mode)
    for kind, mode in itertools.product(SAVED, MODES)
    if not (kind == "JPEG" and mode in ("LA", "RGBA"))
    and not (kind == "BMP" and mode in ("LA", "RGBA"))
]


def save(image: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **(SAVED[kind] | more))
    return file.getvalue()


@pytest.mark.parametrize(("kind", "mode"), PAIRS)
def test_eight_bit_pixels_of_each_format(kind: str, mode: str) -> None:
    channels, rule = MODES[mode]
    expected = [[rule(pixel) for pixel in row] for row in picture(channels)]
    tolerance = LOSSY_TOLERANCE if kind in ("JPEG", "AVIF") else 1
    assert_close(save(pillow(mode, channels), kind), expected, tolerance)


@pytest.mark.parametrize(
    ("kind", "transparent"),
    [(kind, False) for kind in ("PNG", "BMP", "WEBP", "AVIF")]
    + [(kind, True) for kind in ("PNG", "WEBP", "AVIF")],  # BMP has no transparent palette
)
def test_a_palette(kind: str, transparent: bool) -> None:
    image = Image.new("P", (WIDTH, HEIGHT))
    colours = [(7 * i % 256, 13 * i % 256, 29 * i % 256) for i in range(256)]
    image.putpalette([value for colour in colours for value in colour])
    for y, row in enumerate(picture(1)):
        for x, (index,) in enumerate(row):
            image.putpixel((x, y), index)
    alphas = [255 - index if transparent else 255 for index in range(256)]
    more: dict[str, object] = {"transparency": bytes(alphas)} if transparent else {}
    if kind in ("WEBP", "AVIF"):  # have no palette of their own: Pillow writes RGB(A)
        image.info |= more
        image, more = image.convert("RGBA" if transparent else "RGB"), {}
    expected = [
        [over_background(*colours[index], alphas[index]) for (index,) in row] for row in picture(1)
    ]
    # Neighbouring palette entries are far apart in colour, which is the worst case for AVIF.
    assert_close(save(image, kind, **more), expected, 90 if kind == "AVIF" else 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_one_bit(kind: str) -> None:
    bits = [[(x // 5 + y // 3) % 2 for x in range(WIDTH)] for y in range(HEIGHT)]
    image = Image.new("1", (WIDTH, HEIGHT))
    for y, row in enumerate(bits):
        for x, bit in enumerate(row):
            image.putpixel((x, y), bit)
    expected = [[(255 * bit,) * 3 for bit in row] for row in bits]
    assert_close(save(image, kind), expected, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_bmp_of_32_bits_has_alpha_only_if_its_header_says_so(masked: bool) -> None:
    rows = picture(4)
    body = b"".join(bytes((b, g, r, a)) for row in reversed(rows) for r, g, b, a in row)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    size = 40 + len(masks) if masked else 40  # BITMAPV4HEADER or BITMAPINFOHEADER
    compression = 3 if masked else 0  # BI_BITFIELDS or BI_RGB, whose fourth byte means nothing
    info = struct.pack("<IiiHHIIiiII", size, WIDTH, HEIGHT, 1, 32, compression, len(body), *[0] * 4)
    head = info + (masks if masked else b"")
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head))
    rule = MODES["RGBA" if masked else "RGB"][1]
    assert_close(data + head + body, [[rule(pixel) for pixel in row] for row in rows], 1)


# --- PNG files that Pillow cannot write -------------------------------------------------------

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7 += [(0, 1, 1, 2)]  # (x0, y0, dx, dy) of each pass; PNG, third edition, section 8.2
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each PNG colour type


def png(rows: list[list[Pixel]], depth: int, colour_type: int, interlaced: bool, *extra: bytes):
    def packed(line: list[Pixel]) -> bytes:
        bits = "".join(format(value, f"0{depth}b") for pixel in line for value in pixel)
        bits += "0" * (-len(bits) % 8)
        return b"\0" + int(bits, 2).to_bytes(len(bits) // 8)  # filter 0

    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    lines = [
        packed(row[x0::dx]) for x0, y0, dx, dy in passes for row in rows[y0::dy] if row[x0::dx]
    ]
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, colour_type, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *((part[:4], part[4:]) for part in extra)]
    chunks += [(b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour_type", "depth"),  # all that exist: PNG, third edition, section 11.2.1
    [(0, depth) for depth in (1, 2, 4, 8, 16)]
    + [(3, depth) for depth in (1, 2, 4, 8)]
    + [(colour_type, depth) for colour_type in (2, 4, 6) for depth in (8, 16)],
)
def test_every_depth_and_colour_type_of_png(depth: int, colour_type: int, interlaced: bool) -> None:
    most = 2**depth - 1
    rows = [
        [
            tuple(round(ramp(x, y, c) / 255 * most) for c in range(CHANNELS[colour_type]))
            for x in range(WIDTH)
        ]
        for y in range(HEIGHT)
    ]
    colours = [(7 * i % 256, 13 * i % 256, 29 * i % 256) for i in range(min(256, most + 1))]
    palette = b"PLTE" + bytes(value for colour in colours for value in colour)

    def shown(pixel: Pixel) -> tuple[float, ...]:
        if colour_type == 3:
            return colours[pixel[0]]
        unit = [255 * value / most for value in pixel]
        red, green, blue = (unit[0],) * 3 if colour_type in (0, 4) else unit[:3]
        alpha = unit[-1] if colour_type in (4, 6) else 255
        return over_background(red, green, blue, alpha)  # type: ignore[arg-type]

    expected = [[shown(pixel) for pixel in row] for row in rows]
    extra = [palette] if colour_type == 3 else []
    # Of colours of 16 bits the upper byte is taken, which is up to 1 below value / 257.
    assert_close(png(rows, depth, colour_type, interlaced, *extra), expected, 2)


# --- JPEG ---------------------------------------------------------------------------------------


def flat(colour: Pixel, mode: str) -> bytes:
    return save(Image.new(mode, (WIDTH, HEIGHT), colour), "JPEG")


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (20, 200, 90, 40), (0, 0, 0, 255)])
def test_cmyk_jpeg(ink: Pixel) -> None:
    data = flat(ink, "CMYK")
    assert b"Adobe" in data  # whose convention is that the values are stored inverted
    key = 255 - ink[3]
    expected = tuple((255 - value) * key / 255 for value in ink[:3])
    assert_close(data, [[expected] * WIDTH] * HEIGHT, 4)


def test_ycck_jpeg() -> None:
    """The same four channels, called YCCK in the Adobe marker: three of them are YCbCr."""
    stored = (90, 140, 110, 215)  # as in the file: Y, Cb, Cr, inverted K
    data = bytearray(flat(tuple(255 - value for value in stored), "CMYK"))
    data[data.index(b"Adobe") + 11] = 2  # the transform: 0 = none, 2 = YCCK
    y, cb, cr, key = stored
    inverted = (y + 1.402 * (cr - 128), y - 0.344 * (cb - 128) - 0.714 * (cr - 128))
    inverted += (y + 1.772 * (cb - 128),)  # libjpeg gives 255 - these as C, M, Y
    expected = tuple(min(255.0, max(0.0, 255 - value)) for value in inverted)
    shown = tuple(value * key / 255 for value in expected)
    assert_close(bytes(data), [[shown] * WIDTH] * HEIGHT, 5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_jpeg_gives_the_same_as_a_baseline_one(mode: str) -> None:
    image = pillow(mode, len(mode))
    baseline = decoded(save(image, "JPEG"))
    assert np.array_equal(decoded(save(image, "JPEG", progressive=True)), baseline)


# --- orientation and animation ------------------------------------------------------------------

TURNED: dict[int, Callable[[int, int, int, int], tuple[int, int]]] = {
    # (x, y, width, height of the stored picture) -> where that pixel is in the upright one
    1: lambda x, y, w, h: (x, y),
    2: lambda x, y, w, h: (w - 1 - x, y),
    3: lambda x, y, w, h: (w - 1 - x, h - 1 - y),
    4: lambda x, y, w, h: (x, h - 1 - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - 1 - y, x),
    7: lambda x, y, w, h: (h - 1 - y, w - 1 - x),
    8: lambda x, y, w, h: (y, w - 1 - x),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [(kind, "RGB") for kind in ("JPEG", "PNG", "WEBP", "AVIF")]
    + [(kind, "RGBA") for kind in ("PNG", "WEBP", "AVIF")],  # JPEG has no alpha
)
def test_orientation(kind: str, mode: str, orientation: int) -> None:
    channels, rule = MODES[mode]
    upright: dict[tuple[int, int], tuple[float, float, float]] = {}
    for y, row in enumerate(picture(channels)):
        for x, pixel in enumerate(row):
            upright[TURNED[orientation](x, y, WIDTH, HEIGHT)] = rule(pixel)
    sides = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
    expected = [[upright[x, y] for x in range(sides[0])] for y in range(sides[1])]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(pillow(mode, channels), kind, exif=exif.tobytes())
    assert_close(data, expected, LOSSY_TOLERANCE if kind in ("JPEG", "AVIF") else 1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_first_frame_of_an_animation(kind: str, mode: str) -> None:
    channels, rule = MODES[mode]
    first = pillow(mode, channels)
    later = [Image.new(mode, first.size, (255, 0, 0, 255)[:channels]) for _ in range(2)]
    data = save(first, kind, save_all=True, append_images=later)
    expected = [[rule(pixel) for pixel in row] for row in picture(channels)]
    assert_close(data, expected, LOSSY_TOLERANCE if kind == "AVIF" else 2)
