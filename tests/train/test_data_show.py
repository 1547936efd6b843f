"""`clq-train data show`: the pictures are the samples of the run, enlarged, with their boxes."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from shapes_data import shapes_tree, write_shapes
from typer.testing import CliRunner

from clq_serve.annotate import colour_of
from clq_train.cli import app
from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.errors import ConfigError
from clq_train.samples import SampleStream

FACTOR = 1400 // 128  # of a sample of 128 px


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "data", images=3)


def run(folder, *arguments):
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(shapes_tree(folder)))
    arguments = ["data", "show", str(file), *map(str, arguments)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def stream_of(folder):
    config = parse_config(shapes_tree(folder), "test")
    return SampleStream(load_split(config.data, "train"), config)


def picture_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_sample_without_boxes_is_drawn_pixel_for_pixel(shapes, tmp_path):
    tree = json.loads((shapes / "annotations.json").read_text())
    (shapes / "annotations.json").write_text(json.dumps(tree | {"annotations": []}))
    run(shapes, "--out", tmp_path / "show", "--count", 2, "--start", 7)
    for position in (7, 8):
        sample = stream_of(shapes)[position].pixels
        drawn = picture_of(tmp_path / f"show/position-{position:06d}.png")
        np.testing.assert_array_equal(drawn, sample.repeat(FACTOR, 0).repeat(FACTOR, 1))


def test_every_box_is_a_frame_of_its_class_on_its_pixels(shapes, tmp_path):
    printed = run(shapes, "--out", tmp_path / "show", "--count", 3)
    names = [f"position-00000{i}.png" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == [*names, "sheet.png"]
    assert len(printed.stdout.splitlines()) == 4
    for position, name in enumerate(names):
        sample = stream_of(shapes)[position]
        line = f"{position}: {sample.path}, 128 x 128, {len(sample.boxes)} of 3 boxes"
        assert line in printed.stdout
        drawn = picture_of(tmp_path / "show" / name)
        framed = [tuple(box) for box in (sample.boxes * FACTOR).round().astype(int)]
        for (x1, _, x2, y2), label in zip(framed, sample.labels.tolist(), strict=True):
            corner = drawn[y2 - 1, x1:x2]  # the bottom side; captions lie at the top left
            assert (corner == colour_of(label)).all(1).mean() > 0.5
        inside = np.zeros(drawn.shape[:2], bool)
        for x1, y1, x2, y2 in framed:
            inside[max(0, y1 - 40) : y2 + 40, max(0, x1 - 80) : x2 + 80] = True
        plain = sample.pixels.repeat(FACTOR, 0).repeat(FACTOR, 1)
        np.testing.assert_array_equal(drawn[~inside], plain[~inside])


def test_a_position_after_the_end_of_the_run_is_refused(shapes, tmp_path):
    with pytest.raises(ConfigError, match="the run has the samples 0 to 11"):
        run(shapes, "--out", tmp_path / "show", "--count", 3, "--start", 10)
    assert not (tmp_path / "show").exists()
