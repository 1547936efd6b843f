"""The picture with its detections drawn on it, as the bytes of an image file without metadata.

The rules of drawing are those of `clq_client.annotate`, which draws on the caller's machine: one
colour for a class, black or white text by contrast, captions inside the frame and apart.
"""

import colorsys
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from clq_serve.detector import Detections
from clq_serve.errors import NotAcceptable
from clq_serve.preprocess import Colour, Pixels

WEBP_MAX_SIDE_PX = 16_383

Rect = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels, x2 and y2 not part of it

_GOLDEN_RATIO = 0.618034


def annotate(pixels: Pixels, found: Detections, names: Sequence[str], media_type: str) -> bytes:
    """The image `pixels`, (H, W, 3) RGB, with the detections `found`, as a file of `media_type`.

    names       of the classes
    media_type  image/jpeg, image/png or image/webp

    Raises NotAcceptable if the image is too large for WebP.
    """
    image = Image.fromarray(pixels)
    if media_type == "image/webp" and max(image.size) > WEBP_MAX_SIDE_PX:
        raise NotAcceptable(
            f"WebP has {WEBP_MAX_SIDE_PX} pixels a side at most, the image is {image.width} x "
            f"{image.height}; accepted: image/jpeg, image/png",
            extra={"accepted": ["image/jpeg", "image/png"]},
        )
    draw_detections(image, found, names)
    file = io.BytesIO()
    if media_type == "image/jpeg":
        image.save(file, "JPEG", quality=90, subsampling=0)  # thin coloured lines stay sharp
    elif media_type == "image/png":
        image.save(file, "PNG", compress_level=3)
    else:
        image.save(file, "WEBP", quality=90, method=2)
    return file.getvalue()


def draw_detections(image: Image.Image, found: Detections, names: Sequence[str]) -> None:
    """Draws boxes and "label score" into `image` (RGB); the best on top, their captions first."""
    labels: list[int] = found.labels.tolist()
    scores = zip(labels, found.scores.tolist(), strict=True)
    captions = [f"{names[label]} {score:.2f}" for label, score in scores]
    draw_boxes(image, found.boxes.tolist(), labels, captions)


def draw_boxes(
    image: Image.Image,
    boxes_px: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[str],
    text_px: int | None = None,
) -> None:
    """Draws boxes with their captions into `image` (RGB), in the colours of the labels.

    The first lie on top and place their captions first; an empty caption is not drawn.
    text_px  size of the captions; None takes it from the size of the image
    """
    draw = ImageDraw.Draw(image)
    shorter_px = min(image.size)
    line_px = max(2, round(shorter_px / 400))
    font = ImageFont.load_default(size=text_px or min(max(12, round(shorter_px / 65)), 36))
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    boxes = [_pixels_of(box, image.size) for box in boxes_px]
    for box, label in zip(reversed(boxes), reversed(labels), strict=True):
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), None, colour_of(label), line_px)
    placed: list[tuple[str, Rect, int]] = []
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        if caption:
            fitting = _fitting(caption, font, image.width)
            taken = [place for _, place, _ in placed]
            place = _place(box, _caption_px(fitting, font), image.size, taken)
            placed.append((fitting, place, label))
    margin_px = _margin_px(font)
    for caption, place, label in reversed(placed):
        colour = colour_of(label)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
        corner = (place[0] + margin_px, place[1] + margin_px)
        draw.text(corner, caption, fill=readable_on(colour), font=font, anchor="la")


def colour_of(class_id: int) -> Colour:
    """The colour of a class; neighbours in number are far apart in hue, and it never changes."""
    value = (0.95, 0.75, 0.55)[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb((class_id * _GOLDEN_RATIO) % 1.0, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def readable_on(background: Colour) -> Colour:
    """Black or white, whichever has more contrast.  Source: WCAG 2.2, relative luminance."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in background)
    )
    # Both are equally readable where (L + 0.05) ** 2 = 1.05 * 0.05.
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)


def _pixels_of(box: Sequence[float], size: tuple[int, int]) -> Rect:
    """The pixels that a box covers, at least one, all inside the image."""
    x1, y1 = min(round(box[0]), size[0] - 1), min(round(box[1]), size[1] - 1)
    return x1, y1, max(x1 + 1, round(box[2])), max(y1 + 1, round(box[3]))


def _margin_px(font: ImageFont.FreeTypeFont) -> int:
    return max(2, _height_px(font) // 6)


def _height_px(font: ImageFont.FreeTypeFont) -> int:
    """Height of a line: the same for every caption, with or without g and p."""
    return round(font.getbbox("Ag", anchor="la")[3])


def _caption_px(caption: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    margin_px = _margin_px(font)
    return round(font.getlength(caption)) + 2 * margin_px, _height_px(font) + 2 * margin_px


def _fitting(caption: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """The caption, cut at its end where it is wider than the image."""
    while len(caption) > 1 and _caption_px(caption, font)[0] > width_px:
        caption = caption[:-1]
    return caption


def _place(
    box: Rect, caption_px: tuple[int, int], image_px: tuple[int, int], taken: Sequence[Rect]
) -> Rect:
    """Where a caption goes: inside the image; above the box, else in it, else below, if free."""
    width_px, height_px = caption_px
    x1 = max(0, min(box[0], image_px[0] - width_px))
    last_y = max(0, image_px[1] - height_px)
    above, inside, below = box[1] - height_px, box[1], box[3]
    fitting = [y for y in (above, inside, below) if 0 <= y <= last_y] or [min(inside, last_y)]
    places = [(x1, y, x1 + width_px, y + height_px) for y in fitting]
    for place in places:
        if not any(_overlap(place, other) for other in taken):
            return place
    return places[0]


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
