"""Average precision: perfect answers get 1, and each mistake costs what it should."""

import json

import numpy as np
import pytest
from shapes_data import shapes_tree, write_shapes

from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions
from clq_serve.preprocess import plan
from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.errors import DataError
from clq_train.evaluate import evaluate
from clq_train.measure import measure
from clq_train.truth import ground_truth

OPTIONS = DetectOptions(score=0.0, iou=1.0, max=100)


@pytest.fixture
def config(tmp_path):
    # 180 px against a limit of 128: what comes back must have been scaled to the original.
    return parse_config(shapes_tree(write_shapes(tmp_path, side=180)), "test")


class Oracle:
    """An engine that knows the annotations; it may shift its boxes or swap its labels."""

    def __init__(self, config, shift_px=0.0, wrong=False):
        self.config, self.shift_px, self.wrong = config, shift_px, wrong
        self.queue = load_split(config.data, "val")

    def run(self, batch):
        record = self.queue.pop(0)
        geometry = plan(record.width, record.height, self.config.input_rule)
        assert batch.shape == (1, geometry.padded_height, geometry.padded_width, 3)
        boxes = (record.boxes + self.shift_px) * (geometry.resized_width / geometry.width)
        labels = 1 - record.labels if self.wrong else record.labels
        scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
        rows = boxes.astype(np.float32), scores, labels, scores, scores
        return Candidates(*(row[None] for row in rows))


def run(config, by=None, **changes):
    oracle, rule = Oracle(config, **changes), config.input_rule
    return evaluate(oracle, rule, config.data, "val", OPTIONS, by, progress=False)


def test_perfect_detections_have_an_average_precision_of_one(config):
    result = run(config)
    assert result.images == 4
    assert result.ap == result.ap50 == result.ap75 == pytest.approx(1)
    assert {name: c.ap for name, c in result.per_class.items()} == pytest.approx(
        {"red": 1, "blue": 1}
    )


def test_shifted_boxes_lose_at_strict_overlaps_first(config):
    result = run(config, shift_px=3.0)
    assert result.ap50 == pytest.approx(1)
    assert result.ap < 0.9


def test_wrong_labels_earn_nothing(config):
    assert run(config, wrong=True).ap50 < 0.2


def test_nothing_found_is_zero(config):
    result = measure(ground_truth(config.data, "val"), [], config.data.classes)
    assert (result.images, result.ap, result.per_class["red"].ap) == (4, 0.0, 0.0)


def test_groups_of_images_are_measured_separately(config):
    path = config.data.root / "annotations.json"
    tree = json.loads(path.read_text())
    for image in tree["images"]:
        image["camera"] = "left" if image["id"] <= 3 else "right"
    path.write_text(json.dumps(tree))

    class BlindOnTheRight(Oracle):
        def run(self, batch):
            blind = len(self.queue) == 1
            found = super().run(batch)
            return found._replace(boxes=found.boxes * 0) if blind else found

    rule = config.input_rule
    engine = BlindOnTheRight(config)
    result = evaluate(engine, rule, config.data, "val", OPTIONS, "camera", progress=False)
    assert result.per_group == {"left": pytest.approx(1), "right": 0.0}
    assert 0 < result.ap < 1
    with pytest.raises(DataError, match="image 1 has no key 'place'; it has id, file_name"):
        run(config, by="place")


def test_merged_and_dropped_categories_reach_the_ground_truth(tmp_path):
    tree = shapes_tree(write_shapes(tmp_path))
    whole = len(ground_truth(parse_config(tree, "t").data, "val")["annotations"])
    tree["data"] |= {"classes": ["red"], "merge": {"blue": "red"}}
    merged = ground_truth(parse_config(tree, "t").data, "val")
    assert len(merged["annotations"]) == whole
    assert {a["category_id"] for a in merged["annotations"]} == {0}
