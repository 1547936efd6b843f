"""The picture with its boxes: what is drawn, where, and that nothing else leaves the service."""

import io
import itertools
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image, ImageDraw

from clq_serve.annotate import annotate, colour_of, draw_detections, readable_on
from clq_serve.detector import Detections
from clq_serve.errors import NotAcceptable
from clq_serve.formats import IMAGE_TYPES
from clq_serve.preprocess import Colour, ImageLimits, decode_image

WHITE = (255, 255, 255)
NAMES = ["button", "text_input", "ein sehr langer Name, länger als das Bild breit ist"]


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.3, count).astype(np.float32),
        labels=np.arange(count) % len(NAMES),
        cls_scores=np.ones(count, np.float32),
        qualities=np.ones(count, np.float32),
    )


def drawn(data: bytes, found: Detections, media_type: str = "image/png") -> Image.Image:
    pixels = decode_image(data, ImageLimits(), WHITE).pixels
    return Image.open(io.BytesIO(annotate(pixels, found, NAMES, media_type)))


def test_the_outline_lies_on_the_edge_of_the_box_in_the_colour_of_its_class() -> None:
    data = encoded(np.zeros((300, 400, 3), np.uint8))
    pixels = np.asarray(drawn(data, detections((40, 120, 200, 250))))
    inked = (pixels == colour_of(0)).all(-1)
    expected = np.zeros((300, 400), bool)
    expected[120:250, 40:200] = True
    expected[122:248, 42:198] = False  # 2 px wide
    caption = np.zeros((300, 400), bool)
    caption[90:120, 40:] = True  # above the box
    assert np.array_equal(inked & ~caption, expected)
    assert (inked & caption).any()
    changed = (pixels != 0).any(-1)
    assert not (changed & ~expected & ~caption).any()


def contrast(a: Colour, b: Colour) -> float:
    """Of WCAG 2.2, from 1 to 21; 4.5 is asked of text."""

    def luminance(colour: Colour) -> float:
        linear = []
        for value in colour:
            unit = value / 255
            linear.append(unit / 12.92 if unit <= 0.04045 else ((unit + 0.055) / 1.055) ** 2.4)
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("class_id", range(90))
def test_captions_have_contrast_and_colours_of_neighbours_differ(class_id: int) -> None:
    colour = colour_of(class_id)
    assert contrast(colour, readable_on(colour)) >= 4.5
    difference = np.abs(np.subtract(colour, colour_of(class_id + 1)))
    assert difference.max() > 60


class Recorder:
    """Notes where text and rectangles go, and draws them."""

    def __init__(self, image: Image.Image) -> None:
        self.texts: list[tuple[float, float, float, float]] = []
        self.filled: list[tuple[float, ...]] = []
        self._draw = ImageDraw.Draw(image)

    def rectangle(
        self, xy: tuple, fill: object = None, outline: object = None, width: int = 1
    ) -> None:
        if fill is not None:
            self.filled.append(xy)
        self._draw.rectangle(xy, fill, outline, width)  # type: ignore[arg-type]

    def text(self, xy: tuple, text: str, **options: object) -> None:
        font, anchor = options["font"], options["anchor"]
        self.texts.append(self._draw.textbbox(xy, text, font=font, anchor=anchor))  # type: ignore[arg-type]
        self._draw.text(xy, text, **options)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(60, 2000), st.integers(40, 2000)),
    st.lists(st.tuples(*[st.floats(0, 1, allow_nan=False)] * 4), min_size=1, max_size=30),
)
def test_captions_lie_inside_the_frame_wherever_the_boxes_are(
    size: tuple[int, int], corners: list[tuple[float, ...]]
) -> None:
    image = Image.new("RGB", size)
    recorder = Recorder(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clq_serve.annotate.ImageDraw.Draw", lambda _: recorder)
        boxes = [
            (min(a, c) * size[0], min(b, d) * size[1], max(a, c) * size[0], max(b, d) * size[1])
            for a, b, c, d in corners
        ]
        draw_detections(image, detections(*boxes), NAMES)
    assert len(recorder.texts) == len(recorder.filled) == len(boxes)
    for text, fill in zip(recorder.texts, recorder.filled, strict=True):
        assert 0 <= fill[0] <= text[0]
        assert text[2] <= fill[2] + 1 <= size[0]
        assert 0 <= fill[1] <= text[1]
        assert text[3] <= fill[3] + 1 <= max(size[1], fill[3] + 1 - fill[1])


def test_captions_of_neighbours_do_not_cover_each_other() -> None:
    image = Image.new("RGB", (400, 300))
    recorder = Recorder(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clq_serve.annotate.ImageDraw.Draw", lambda _: recorder)
        draw_detections(image, detections((50, 100, 150, 180), (52, 101, 150, 181)), ["a"] * 3)
    (a, b) = recorder.filled
    assert a[3] < b[1] or b[3] < a[1] or a[2] < b[0] or b[2] < a[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (8, 8)])
def test_tiny_images_are_drawn_on_too(size: tuple[int, int]) -> None:
    data = encoded(np.zeros((size[1], size[0], 3), np.uint8))
    assert drawn(data, detections((0, 0, *size), (0, 0, 1, 1))).size == size


@pytest.mark.parametrize("decode_workers", [0, 1])
def test_the_picture_is_upright_and_has_no_metadata(
    start_server: Callable[..., str], decode_workers: int
) -> None:
    server = start_server(decode_workers=decode_workers)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret place"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)  # GPS latitude
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (0, 100, 0)
    allowed = {"jfif", "jfif_version", "jfif_unit", "jfif_density"}  # of the formats themselves
    allowed |= {"loop", "background", "timestamp", "duration"}
    for kind, media_type in itertools.product(("JPEG", "PNG", "WEBP"), IMAGE_TYPES):
        data = encoded(pixels, kind, exif=exif.tobytes())
        assert b"secret" in data
        answer = httpx.post(
            f"{server}/v1/detect", files={"image": data}, headers={"Accept": media_type}, timeout=60
        )
        assert answer.headers["content-type"] == media_type, answer.text
        image = Image.open(io.BytesIO(answer.content))
        assert image.size == (20, 40)
        top, bottom = image.getpixel((10, 10)), image.getpixel((10, 35))
        assert top == pytest.approx((0, 100, 0), abs=8)  # turned by a quarter to the right
        assert bottom == pytest.approx((0, 0, 0), abs=8)
        assert not image.getexif()
        assert set(image.info) <= allowed


def test_transparency_is_drawn_on_the_background_of_the_model(server: str) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(file, "PNG")
    answer = httpx.post(
        f"{server}/v1/detect?score=1",
        files={"image": file.getvalue()},
        headers={"Accept": "image/png"},
        timeout=60,
    )
    image = Image.open(io.BytesIO(answer.content))
    assert image.getpixel((5, 5)) == (255, 255, 255)


def test_what_webp_cannot_hold_is_refused_with_what_can() -> None:
    data = encoded(np.zeros((100, 16_384, 3), np.uint8))
    with pytest.raises(NotAcceptable, match="16383") as caught:
        drawn(data, detections(), "image/webp")
    assert caught.value.extra["accepted"] == ["image/jpeg", "image/png"]
    assert drawn(data, detections(), "image/png").size == (16_384, 100)
