"""`clq-train data stats`: what it counts, held against plain loops, and what it says is wrong."""

import json
import math
import statistics

import numpy as np
import pytest
import yaml
from PIL import Image
from shapes_data import shapes_tree, write_shapes
from typer.testing import CliRunner

from clq_train.cli import app
from clq_train.config import parse_config
from clq_train.data_stats import split_stats


@pytest.fixture
def shapes(tmp_path):
    folder = write_shapes(tmp_path / "data", images=5)
    tree = json.loads((folder / "annotations.json").read_text())
    tree["annotations"][0]["iscrowd"] = 1
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != 5]
    (folder / "annotations.json").write_text(json.dumps(tree))
    return folder


def config_of(folder, **changes):
    return parse_config({**shapes_tree(folder), **changes}, "test")


def run(folder, *arguments, tree=None):
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree or shapes_tree(folder)))
    return CliRunner().invoke(app, ["data", "stats", str(file), *map(str, arguments)])


def test_every_figure_is_that_of_a_plain_loop(shapes):
    tree = shapes_tree(shapes)
    tree["input"] = {"shorter_px": 64, "longer_px": 256, "upscale": False}  # half of 128 px
    stats, _ = split_stats(parse_config(tree, "test"), "train", decode=False)
    file = json.loads((shapes / "annotations.json").read_text())
    entries = [a for a in file["annotations"] if not a["iscrowd"]]
    sides = sorted(math.sqrt(a["bbox"][2] * a["bbox"][3]) for a in entries)
    assert (stats.images, stats.images_without_boxes) == (5, 1)
    assert (stats.boxes, stats.crowds, stats.dropped) == (len(entries), 1, 0)
    assert stats.small == sum(side < 32 for side in sides)
    assert stats.medium == sum(32 <= side < 96 for side in sides)
    assert stats.large == 0
    for percent, value in ((0, sides[0]), (50, statistics.median(sides)), (100, sides[-1])):
        assert stats.side_px[percent] == pytest.approx(value)
        assert stats.input_side_px[percent] == pytest.approx(value / 2)
    aspects = [a["bbox"][2] / a["bbox"][3] for a in entries]
    assert stats.aspect[50] == pytest.approx(statistics.median(aspects))
    assert stats.boxes_an_image[100] == 3
    assert stats.image_sizes == {"128 x 128": 5}
    assert stats.under_cell == sum(min(a["bbox"][2:]) / 2 < 8 for a in entries)
    assert stats.under_anchor == sum(side / 2 < 32 for side in sides)
    for name, category in (("red", 3), ("blue", 7)):
        mine = [a for a in entries if a["category_id"] == category]
        found = stats.classes[name]
        assert found.boxes == len(mine)
        assert found.images == len({a["image_id"] for a in mine})
        median = statistics.median(math.sqrt(a["bbox"][2] * a["bbox"][3]) for a in mine)
        assert found.median_side_px == pytest.approx(median)


def test_what_is_broken_is_listed_and_the_rest_counted(shapes):
    tree = json.loads((shapes / "annotations.json").read_text())
    tree["annotations"][1]["bbox"][2] = 0
    tree["annotations"][2].update(tree["annotations"][3], id=tree["annotations"][2]["id"])
    tree["categories"].append({"id": 9, "name": "green"})
    tree["images"][4]["file_name"] = "nowhere.png"
    (shapes / "annotations.json").write_text(json.dumps(tree))
    damaged = shapes / "images/2.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    result = run(shapes, "--split", "train", "--decode")
    assert result.exit_code == 0, result.output
    for line in (
        "category 9 'green' is unknown",
        "train: 4 broken entries",
        "annotation 2: bbox",
        "image 5: no file",
        "2.png: the PNG file stops before its end",
        "hint: train: 1 boxes repeat another of their image and class",
        "hint: train: classes of under 50 boxes: ",
    ):
        assert line in result.output
    assert "val" not in result.output
    assert "2.png" not in run(shapes, "--split", "train").output


def test_a_set_of_data_more_is_a_column_beside_the_splits_and_may_lack_classes(shapes, tmp_path):
    own = write_shapes(tmp_path / "own", images=2, seed=1)
    file = json.loads((own / "annotations.json").read_text())
    file["annotations"] = [a for a in file["annotations"] if a["category_id"] == 3]
    file["categories"] = file["categories"][:1]
    (own / "annotations.json").write_text(json.dumps(file))
    tree = shapes_tree(shapes)
    tree["data"]["more"] = [{"annotations": str(own / "annotations.json"), "images": str(own)}]
    broken = json.loads(run(shapes, "--json", tree=tree).stdout)["splits"]["more.0"]["broken"]
    assert ["no file" in line for line in broken] == [True, True]
    tree["data"]["more"][0]["images"] = str(own / "images")
    splits = json.loads(run(shapes, "--json", tree=tree).stdout)["splits"]
    assert list(splits) == ["train", "val", "more.0"]
    assert splits["more.0"]["images"] == 2
    red = splits["more.0"]["classes"]["red"]["boxes"]
    assert (red, splits["more.0"]["boxes"]) == (len(file["annotations"]),) * 2
    assert "train" not in run(shapes, "--split", "more.0", tree=tree).output
    wrong = run(shapes, "--split", "more.1", tree=tree)
    assert "no split 'more.1'; the configuration has train, val, more.0" in str(wrong.exception)


@pytest.mark.slow
def test_json_and_picture_are_written(shapes, tmp_path):
    out = tmp_path / "stats"
    printed = run(shapes, "--json", "--out", out)
    tree = json.loads(printed.stdout)
    assert tree == json.loads((out / "stats.json").read_text())
    assert set(tree["splits"]) == {"train", "val"}
    assert tree["splits"]["train"]["boxes"] == 11
    assert "train and val have 5 images in common" in tree["hints"]
    assert sorted(path.name for path in out.iterdir()) == ["stats.json", "stats.png"]
    with Image.open(out / "stats.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 800
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_a_split_without_a_box_or_an_image_is_described_too(shapes, tmp_path):
    for change, out in (({"annotations": []}, []), ({"images": []}, ["--out", tmp_path / "stats"])):
        tree = json.loads((shapes / "annotations.json").read_text()) | change
        (shapes / "annotations.json").write_text(json.dumps(tree))
        result = run(shapes, *out, "--decode")
        assert result.exit_code == 0, result.output
        assert "hint: train: there is no box" in result.output
    assert (tmp_path / "stats/stats.png").is_file()
