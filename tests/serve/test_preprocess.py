"""Every kind of image becomes the right upright RGB pixels or one of the documented errors."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clq_serve.errors import (
    CorruptImage,
    ImageError,
    ImageTooLarge,
    TooManyFrames,
    TruncatedImage,
    UnsupportedImage,
)
from clq_serve.image_bytes import ACCEPTED_FORMATS, webp_size
from clq_serve.preprocess import (
    DecodedImage,
    ImageHeader,
    ImageLimits,
    decode_image,
    probe_image,
    upright_size,
)

BACKGROUND = (10, 200, 30)


def decode(data: bytes, limits: ImageLimits | None = None) -> DecodedImage:
    return decode_image(data, limits or ImageLimits(), BACKGROUND)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(width: int = 90, height: int = 60) -> Image.Image:
    """Smooth, asymmetric, colourful: survives lossy codecs, shows every turn and swap."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [x * 200 // width + 20, y * 200 // height + 20, (x + y) * 100 // (width + height) + 60],
        axis=-1,
    )
    return Image.fromarray(pixels.astype(np.uint8))


def noise(width: int = 120, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_with_header(width: int, height: int) -> bytes:
    """A PNG that claims to be width x height, with next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
def test_each_accepted_format_gives_its_pixels(kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    image = decode(encoded(scene(), kind, **options))
    tolerance = 12 if kind in ("JPEG", "AVIF") else 0
    off = np.abs(image.pixels.astype(int) - np.asarray(scene()).astype(int))
    assert off.max() <= tolerance
    assert (image.format, image.orientation_applied) == (kind, False)
    assert image.pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "EPS", "PDF", "TGA"])
def test_other_formats_are_refused_with_the_list_of_accepted_ones(kind: str) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WEBP, AVIF, BMP") as caught:
        decode(encoded(scene(), kind))
    assert caught.value.status == 415
    assert caught.value.extra["accepted"] == list(ACCEPTED_FORMATS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"plain text named photo.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
)
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        decode(data)


UPRIGHT = {  # what a viewer shows for stored pixels `a`, from the table of EXIF 2.32
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encoded(scene(), kind, exif=exif.tobytes(), **options))
    expected = UPRIGHT[orientation](np.asarray(scene()))
    assert image.pixels.shape == expected.shape
    off = np.abs(image.pixels.astype(int) - expected.astype(int))
    assert off.max() <= (16 if kind == "JPEG" else 0)
    assert image.orientation_applied == (orientation != 1)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_upright_size_is_that_of_the_decoded_image(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene(), kind, exif=exif.tobytes())
    (tmp_path / "image").write_bytes(data)
    height, width = decode(data).pixels.shape[:2]
    assert upright_size(tmp_path / "image", ImageLimits()) == (width, height)


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
def test_a_file_without_a_size_is_refused_by_its_header(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(encoded(scene(), kind))
    assert upright_size(file, ImageLimits()) == (90, 60)
    with pytest.raises(ImageTooLarge):
        upright_size(file, ImageLimits(max_side_px=80))
    file.write_bytes(file.read_bytes()[:14])
    with pytest.raises(TruncatedImage, match="after 14 bytes"):
        upright_size(file, ImageLimits())
    file.write_bytes(b"no image")
    with pytest.raises(UnsupportedImage):
        upright_size(file, ImageLimits())


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert not decode(encoded(scene(), "PNG", exif=exif.tobytes())).orientation_applied


def test_damaged_metadata_do_not_spoil_good_pixels() -> None:
    data = encoded(scene(), "PNG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken")
    assert np.array_equal(decode(data).pixels, np.asarray(scene()))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 64 * 8).astype(np.uint16).reshape(8, 64)
    pixels = decode(encoded(Image.fromarray(wide), "PNG")).pixels
    expected = [[int(value / 257 + 0.5) for value in row] for row in wide.tolist()]
    assert pixels[..., 0].tolist() == expected
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_shows_the_background() -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, 2:4] = (255, 0, 0, 255)
    rgba[:, 4:] = (255, 0, 0, 128)
    pixels = decode(encoded(Image.fromarray(rgba), "PNG")).pixels
    assert pixels[0, 0].tolist() == list(BACKGROUND)
    assert pixels[0, 2].tolist() == [255, 0, 0]
    half = [(255 * 128 + 10 * 127) / 255, 200 * 127 / 255, 30 * 127 / 255]
    assert pixels[0, 4].tolist() == pytest.approx(half, abs=1)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255])])
def test_a_transparent_palette_entry_shows_the_background(transparency: object) -> None:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.paste(2, (0, 0, 3, 4))
    pixels = decode(encoded(image, "PNG", transparency=transparency)).pixels
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[0, 5].tolist() == list(BACKGROUND)


def test_a_transparent_grey_or_rgb_colour_shows_the_background() -> None:
    wide = np.array([[0, 1000, 65535]], np.uint16)
    for image, transparency in (
        (Image.fromarray(wide), 1000),
        (Image.fromarray((wide >> 8).astype(np.uint8)), 1000 >> 8),
        (Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB"), (3, 3, 3)),
    ):
        pixels = decode(encoded(image, "PNG", transparency=transparency)).pixels
        assert pixels[0].tolist() == [[0, 0, 0], list(BACKGROUND), [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LA"])
def test_other_pixel_types_give_rgb(mode: str) -> None:
    image = scene().convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    options = {"quality": 95} if kind == "JPEG" else {}
    pixels = decode(encoded(image, kind, **options)).pixels
    off = np.abs(pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int))
    assert off.max() <= (14 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(data).pixels[5, 5].tolist() == pytest.approx([255, 0, 0], abs=5)


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
@pytest.mark.parametrize("part", range(1, 16))
def test_a_truncated_file_is_called_truncated(kind: str, part: int) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(TruncatedImage) as caught:
        decode(data[: len(data) * part // 16])
    assert (caught.value.status, caught.value.code) == (422, "truncated")


@pytest.mark.parametrize("kind", ACCEPTED_FORMATS)
def test_flipped_bits_give_pixels_or_a_documented_error(kind: str) -> None:
    whole = encoded(noise(40, 30), kind)
    rng = np.random.default_rng(7)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 400), 3):
            data[at] ^= 1 << int(rng.integers(0, 8))
        try:
            image = decode(bytes(data))
        except ImageError as err:
            outcomes.add(err.status)
        else:
            outcomes.add(200 if image.pixels.ndim == 3 else 0)
    assert outcomes <= {200, 413, 415, 422}
    assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("width", "height"), [(9_600, 9_600), (16_385, 1), (1, 20_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_header_that_claims_too_much_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        decode(png_with_header(width, height))
    extra = caught.value.extra
    assert caught.value.status == 413
    assert isinstance(extra["limit"], int)
    assert isinstance(extra["observed"], int)
    assert extra["observed"] > extra["limit"]


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 0), (2**31, 4)])
def test_a_header_without_area_or_out_of_range_is_refused(width: int, height: int) -> None:
    with pytest.raises((CorruptImage, ImageTooLarge)):
        decode(png_with_header(width, height))


def test_limits_are_the_ones_given_and_inclusive() -> None:
    data = encoded(scene(90, 60), "PNG")
    decode(data, ImageLimits(max_pixels=90 * 60, max_side_px=90))
    with pytest.raises(ImageTooLarge, match="5400 pixels; 5399 are accepted"):
        decode(data, ImageLimits(max_pixels=90 * 60 - 1))
    with pytest.raises(ImageTooLarge, match="90 x 60 pixels; a side may have 89"):
        decode(data, ImageLimits(max_side_px=89))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 200), (200, 1)])
def test_thin_images_decode(width: int, height: int) -> None:
    data = encoded(Image.new("RGB", (width, height), (1, 2, 3)), "PNG")
    assert decode(data).pixels.shape == (height, width, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 201), (201, 1)])
def test_a_thinner_image_is_refused_unless_the_limit_says_otherwise(
    width: int, height: int
) -> None:
    data = encoded(Image.new("RGB", (width, height), (1, 2, 3)), "PNG")
    with pytest.raises(ImageTooLarge, match="200 times the shorter") as caught:
        decode(data)
    assert caught.value.extra == {"limit": 200.0, "observed": 201.0}
    assert decode(data, ImageLimits(max_aspect=201)).pixels.shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF"])
def test_an_animation_with_more_frames_than_the_limit_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), (80 * index, 0, 0)) for index in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert probe_image(data, ImageLimits(max_frames=3)) == ImageHeader(kind, 20, 10, 3)
    with pytest.raises(TooManyFrames, match="3 frames; 2 are accepted") as caught:
        decode(data, ImageLimits(max_frames=2))
    assert (caught.value.status, caught.value.code) == (422, "too_many_frames")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08"}])
def test_the_size_of_a_webp_canvas_is_checked_before_pillow_takes_memory_for_it(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(scene(300, 200), "WEBP", **options)
    assert webp_size(data) == (300, 200)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    with pytest.raises(ImageTooLarge):
        decode(data, ImageLimits(max_pixels=59_999))


def test_a_jpeg_with_hundreds_of_scans_is_refused() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    decode(data)
    last_scan = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last_scan:-2] * 300 + data[-2:]
    with pytest.raises(CorruptImage, match="more than 256 scans"):
        decode(bomb)


def test_one_flipped_bit_anywhere_in_a_png_is_noticed() -> None:
    whole = encoded(noise(20, 15), "PNG")
    end = whole.index(b"IEND") + 8
    for at in range(0, end, 7):
        data = bytearray(whole)
        data[at] ^= 16
        with pytest.raises(ImageError):
            decode(bytes(data))


def test_decoding_in_many_threads_leaves_warnings_and_pillow_as_they_were() -> None:
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    files = [encoded(scene(), kind) for kind in ACCEPTED_FORMATS] * 20
    shapes = []

    def work(part: list[bytes]) -> None:
        shapes.extend(decode(data).pixels.shape for data in part)

    threads = [threading.Thread(target=work, args=(files[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert shapes == [(60, 90, 3)] * 100
    assert list(warnings.filters) == filters
    assert limit == Image.MAX_IMAGE_PIXELS
