"""Draws detections on their image.  Needs Pillow: pip install "clq-client[cli]".

Boxes are in the pixels of the upright image, so the EXIF orientation is applied before drawing.
The picture that is written holds pixels only: no EXIF, no other metadata.
"""

import colorsys
import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from clq_client.results import Detection, DetectResult

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # x1 y1 x2 y2 in pixels, x2 and y2 not part of it

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP")  # what the service takes; Pillow opens 40 more
_GOLDEN_RATIO = 0.618034


def write_annotated(data: bytes, result: DetectResult, path: Path) -> None:
    """Writes the image with its detections to `path`, as PNG; all of the file or nothing.

    data    the file that was sent to the service

    Raises OSError (the image cannot be read, the file cannot be written) and ValueError (the
    result is about an image of another size, or the image has too many pixels for Pillow).
    """
    image = upright_rgb(data)
    if image.size != (result.image.width, result.image.height):
        raise ValueError(
            f"the image has {image.width}x{image.height} pixels, the result is about "
            f"{result.image.width}x{result.image.height}"
        )
    draw_detections(image, result.detections)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image.save(beside, format="PNG")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def upright_rgb(data: bytes) -> Image.Image:
    """The image of a file as a person sees it: turned as EXIF says, transparency on white."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as stored:
            image = ImageOps.exif_transpose(stored)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 257)).convert("L")  # convert alone clips
    clean = Image.new("RGB", image.size, (255, 255, 255))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        clean.paste(rgba, mask=rgba)
    else:
        clean.paste(image.convert("RGB"))
    return clean


def draw_detections(image: Image.Image, detections: Sequence[Detection]) -> None:
    """Draws boxes and "label score" into `image` (RGB).

    detections  best first; the best are drawn on top, and their labels choose their place first
    """
    draw = ImageDraw.Draw(image)
    shorter_px = min(image.size)
    line_px = max(2, round(shorter_px / 400))
    font = ImageFont.load_default(size=min(max(10, round(shorter_px / 75)), 32))
    for found in reversed(detections):
        draw.rectangle(
            _pixels_of(found.box, image.size), outline=colour_of(found.class_id), width=line_px
        )
    taken: list[Rect] = []
    for found in detections:
        caption = _fitting(f"{found.label} {found.score:.2f}", font, image.width)
        place = _place(found.box, _caption_size(caption, font), image.size, taken)
        taken.append(place)
    for found, place in zip(reversed(detections), reversed(taken), strict=True):
        caption = _fitting(f"{found.label} {found.score:.2f}", font, image.width)
        colour = colour_of(found.class_id)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
        corner = (place[0] + _margin_px(font), place[1] + _margin_px(font))
        draw.text(corner, caption, fill=_readable_on(colour), font=font, anchor="la")


def colour_of(class_id: int) -> Colour:
    """The colour of a class; neighbours in number are far apart in hue, and it never changes."""
    hue = (class_id * _GOLDEN_RATIO) % 1.0
    value = (0.95, 0.75, 0.55)[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1].  Source: WCAG 2.2, relative luminance."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _readable_on(background: Colour) -> Colour:
    # Black and white are equally readable where (L + 0.05) ** 2 = 1.05 * 0.05.
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)


def _pixels_of(box: tuple[float, float, float, float], size: tuple[int, int]) -> Rect:
    """The first and the last pixel that a box covers, both part of it, at least one."""
    x1, y1 = min(round(box[0]), size[0] - 1), min(round(box[1]), size[1] - 1)
    return x1, y1, max(x1, round(box[2]) - 1), max(y1, round(box[3]) - 1)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _margin_px(font: _Font) -> int:
    return max(2, _height_px(font) // 6)


def _height_px(font: _Font) -> int:
    """Height of a line: the same for every caption, with or without g and p."""
    return round(font.getbbox("Ag", anchor="la")[3])


def _caption_size(caption: str, font: _Font) -> tuple[int, int]:
    margin_px = _margin_px(font)
    return round(font.getlength(caption)) + 2 * margin_px, _height_px(font) + 2 * margin_px


def _fitting(caption: str, font: _Font, width_px: int) -> str:
    """The caption, cut at its end where it is wider than the image."""
    while len(caption) > 1 and _caption_size(caption, font)[0] > width_px:
        caption = caption[:-1]
    return caption


def _place(
    box: tuple[float, float, float, float],
    caption_px: tuple[int, int],
    image_px: tuple[int, int],
    taken: Sequence[Rect],
) -> Rect:
    """Where a caption goes: inside the image; above the box, else in it, else below, if free."""
    width_px, height_px = caption_px
    x1 = max(0, min(round(box[0]), image_px[0] - width_px))
    last_y = max(0, image_px[1] - height_px)
    above, inside, below = round(box[1]) - height_px, round(box[1]), round(box[3])
    fitting = [y for y in (above, inside, below) if 0 <= y <= last_y] or [min(inside, last_y)]
    places = [(x1, y, x1 + width_px, y + height_px) for y in fitting]
    for place in places:
        if not any(_overlap(place, other) for other in taken):
            return place
    return places[0]


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
