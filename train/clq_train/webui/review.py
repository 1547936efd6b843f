"""Contact sheets: pictures of a family with their boxes drawn, to be looked at."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from clq_train.errors import DataError
from clq_train.webui.labels import CLASSES
from clq_train.webui.sources import SPLITS

COLOURS = dict(zip(CLASSES, (
    "#e6194b", "#0082c8", "#3cb44b", "#808000", "#f032e6", "#911eb4", "#ff7f00", "#aa6e28",
    "#f58231", "#ff00aa", "#5500ff", "#8a8a8a", "#00aa00", "#d2a000",
), strict=True))  # fmt: skip
CAPTION_PX, MARGIN_PX = 16, 6


def write_sheets(
    data: Path, out: Path, families: list[str] | None, each: int, columns: int, width_px: int
) -> list[Path]:
    """One PNG for each family, of `each` pictures that are the same every time."""
    found: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = defaultdict(list)
    for split in SPLITS:
        for image, annotations in images_of(data, split):
            found[image["family"]].append((image, annotations))
    for name in families or []:
        if name not in found:
            raise DataError(
                f"{data}: no pictures of family {name!r}; it has {', '.join(sorted(found))}"
            )
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in sorted(families or found):
        chosen = random.Random(name).sample(found[name], min(each, len(found[name])))
        tiles = [_tile(data, image, annotations, width_px) for image, annotations in chosen]
        paths.append(out / f"{name}.png")
        _sheet(tiles, columns).save(paths[-1])
    return paths


def images_of(data: Path, split: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Image records of a split, each with its annotations."""
    path = data / f"{split}.json"
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; `clq-train webui build` writes it") from error
    names = {c["id"]: c["name"] for c in tree["categories"]}
    by_image = defaultdict(list)
    for annotation in tree["annotations"]:
        by_image[annotation["image_id"]].append(
            annotation | {"name": names[annotation["category_id"]]}
        )
    return [(image, by_image[image["id"]]) for image in tree["images"]]


def _tile(
    data: Path, image: dict[str, Any], annotations: list[dict[str, Any]], width_px: int
) -> Image.Image:
    """The picture at this width with coloured boxes and the first letters of each class."""
    with Image.open(data / "images" / image["file_name"]) as file:
        picture = file.convert("RGB")
    scale = width_px / picture.width
    picture = picture.resize(
        (width_px, max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    draw = ImageDraw.Draw(picture)
    for annotation in sorted(annotations, key=lambda a: -a["area"]):
        x, y, w, h = (v * scale for v in annotation["bbox"])
        colour = COLOURS[annotation["name"]]
        draw.rectangle((x, y, x + w, y + h), outline=colour)
        if annotation["name"] not in ("text", "icon"):
            draw.text((x + 1, max(0, y - 9)), annotation["name"][:3], fill=colour, font_size=8)
    tile = Image.new("RGB", (width_px, picture.height + CAPTION_PX), "white")
    tile.paste(picture, (0, 0))
    size = f"{image['width']}x{image['height']}"
    caption = f"{image['file_name']} {size} {len(annotations)} boxes {image['source']}"
    ImageDraw.Draw(tile).text((2, picture.height + 2), caption[:140], fill="black", font_size=10)
    return tile


def _sheet(tiles: list[Image.Image], columns: int) -> Image.Image:
    """Tiles in columns, each column as long as what it holds."""
    heights = [0] * columns
    places = []
    for tile in tiles:
        column = heights.index(min(heights))
        places.append((column, heights[column]))
        heights[column] += tile.height + MARGIN_PX
    width = tiles[0].width + MARGIN_PX
    sheet = Image.new("RGB", (width * min(columns, len(tiles)), max(heights)), "#444444")
    for tile, (column, top) in zip(tiles, places, strict=True):
        sheet.paste(tile, (column * width, top))
    return sheet
