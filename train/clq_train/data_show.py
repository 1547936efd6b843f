"""Samples as training sees them, with their boxes, as pictures."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clq_serve.annotate import draw_boxes
from clq_train.augment import Sample
from clq_train.coco import training_records
from clq_train.config import Config
from clq_train.errors import ConfigError
from clq_train.samples import SampleStream

LONGER_PX = 1400  # of a picture; the pixels of the sample are whole squares in it
LABEL_PX = 12  # small, so that little of the sample is hidden
CELL_PX, CAPTION_PX, GAP_PX = 420, 20, 8  # of the contact sheet
SHEET_COLUMNS = 6


def show_samples(config: Config, out: Path, start: int, count: int) -> list[str]:
    """Writes samples start .. start + count - 1 of the run, and a sheet of all; a line for each.

    The files are position-NNNNNN.png and sheet.png in the folder `out`.

    Raises DataError as training_records does, and ConfigError for a position after the run's last.
    """
    stream = SampleStream(training_records(config.data), config)
    if start + count > len(stream):
        raise ConfigError(
            f"--start {start} --count {count}: the run has the samples 0 to {len(stream) - 1} "
            "(schedule.steps x schedule.batch)"
        )
    out.mkdir(parents=True, exist_ok=True)
    lines, cells = [], []
    for position in range(start, start + count):
        sample = stream[position]
        save_png(draw_sample(sample, config.data.classes), out / f"position-{position:06d}.png")
        record = stream.records[stream.image_at(position)]
        height, width = sample.pixels.shape[:2]
        boxes = f"{len(sample.boxes)} of {len(record.boxes)} boxes"
        lines.append(f"{position}: {record.path}, {width} x {height}, {boxes}")
        cells.append((thumbnail(sample), f"{position}: {record.path.name}, {boxes}"))
    save_png(contact_sheet(cells), out / "sheet.png")
    return lines


def draw_sample(sample: Sample, names: Sequence[str]) -> Image.Image:
    """The sample enlarged by a whole factor, with its boxes and labels."""
    height, width = sample.pixels.shape[:2]
    factor = max(1, LONGER_PX // max(height, width))
    picture = Image.fromarray(sample.pixels.repeat(factor, 0).repeat(factor, 1))
    labels = sample.labels.tolist()
    captions = [names[label] for label in labels]
    draw_boxes(picture, (sample.boxes * factor).tolist(), labels, captions, LABEL_PX)
    return picture


def thumbnail(sample: Sample) -> Image.Image:
    """The sample at the size of a cell of the sheet, with its boxes alone."""
    height, width = sample.pixels.shape[:2]
    factor = CELL_PX / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(sample.pixels).resize(size, Image.Resampling.BILINEAR)
    across_down = np.tile(np.array(size) / (width, height), 2)
    labels = sample.labels.tolist()
    draw_boxes(picture, (sample.boxes * across_down).tolist(), labels, [""] * len(labels))
    return picture


def contact_sheet(cells: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """The pictures in rows, each with its caption above."""
    columns = min(SHEET_COLUMNS, math.ceil(math.sqrt(len(cells))))
    rows = math.ceil(len(cells) / columns)
    across, down = CELL_PX + GAP_PX, CELL_PX + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (columns * across + GAP_PX, rows * down + GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, (picture, caption) in enumerate(cells):
        row, column = divmod(number, columns)
        left, top = GAP_PX + column * across, GAP_PX + row * down
        draw.text((left, top), caption, fill="black", font=font)
        sheet.paste(picture, (left, top + CAPTION_PX))
    return sheet


def save_png(picture: Image.Image, path: Path) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    picture.save(beside, "PNG", compress_level=3)
    os.replace(beside, path)
