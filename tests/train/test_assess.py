"""The whole assessment, on an engine whose boxes and scores are made."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from shapes_data import shapes_tree, write_shapes

from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector
from clq_serve.nms import ClassNms
from clq_serve.preprocess import ImageLimits, decode_image
from clq_train.assess import Assessor
from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.evaluate import detect_all, evaluate
from clq_train.report.page import report_page
from clq_train.report.table import table_lines
from clq_train.thresholds import best_operating, operating_points
from clq_train.truth import ground_truth, group_images

OPTIONS = DetectOptions(score=0.05, iou=0.6, max=20)


class Scattered:
    """An engine with boxes near the objects, more than it may answer, and unrelated scores."""

    def __init__(self, records):
        self.queue, self.rng = list(records), np.random.default_rng(5)

    def run(self, batch):
        record, count = self.queue.pop(0), 60
        of = self.rng.integers(0, len(record.boxes), count)
        boxes = record.boxes[of] + self.rng.normal(0, 5, (count, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        boxes[-1] = [500, 500, 510, 510]  # in the padding
        cls, quality = self.rng.uniform(0.01, 1, (2, count)).astype(np.float32)
        labels = record.labels[of]
        labels[:10] = 1 - labels[:10]
        order = np.argsort(-(cls * quality**0.3), kind="stable")
        columns = boxes.astype(np.float32), cls * quality**0.3, labels, cls, quality
        return Candidates(*(column[order][None] for column in columns))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_shapes(tmp_path_factory.mktemp("assess"), images=5)
    return parse_config(shapes_tree(folder), "test")


def seen(config):
    records = load_split(config.data, "val")
    rule = config.input_rule
    return list(detect_all(Scattered(records), rule, records, OPTIONS, progress=False))


def assess(config, groups=None):
    truth = ground_truth(config.data, "val")
    assessor = Assessor(truth, config.data.classes, groups or {}, OPTIONS.iou)
    for record, found in seen(config):
        assessor.add(record.image_id, found)
    return assessor.result()


def test_the_detections_are_the_services_and_come_from_the_candidates(config):
    engine = Scattered(load_split(config.data, "val"))
    detector = Detector(engine, ClassNms(), config.input_rule)
    for record, found in seen(config):
        image = decode_image(record.path.read_bytes(), ImageLimits(), (255, 255, 255))
        ((served,), _) = detector.detect([image], OPTIONS)
        for mine, theirs in zip(astuple(found.detections), astuple(served), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        candidates = found.candidates
        assert (candidates.scores > 0.05).all()
        assert (candidates.boxes[:, 2] <= record.width).all()
        again = ClassNms()(*candidates[:3], OPTIONS.iou, 0.0, OPTIONS.max)
        np.testing.assert_array_equal(candidates.scores[again], served.scores)


def test_ranking_by_class_score_changes_the_order_and_not_the_candidates(config):
    for _, found in seen(config):
        candidates, by_class = found.candidates, found.by_class
        kept = ClassNms()(
            candidates.boxes,
            candidates.cls_scores,
            candidates.labels,
            OPTIONS.iou,
            0.0,
            OPTIONS.max,
        )
        np.testing.assert_array_equal(by_class.boxes, candidates.boxes[kept])
        np.testing.assert_array_equal(by_class.scores, candidates.cls_scores[kept])


def astuple(found):
    return found.boxes, found.scores, found.labels, found.cls_scores, found.qualities


def test_its_coco_metrics_are_those_of_evaluate(config):
    records = load_split(config.data, "val")
    expected = evaluate(
        Scattered(records), config.input_rule, config.data, "val", OPTIONS, progress=False
    )
    found = assess(config)
    assert found.evaluation == expected
    assert found.by_class.ap != found.evaluation.ap
    assert 0 < found.by_class.ap < 1


def test_only_the_classes_asked_for_are_candidates(config):
    records = load_split(config.data, "val")
    options = DetectOptions(0.05, 0.6, 20, classes=frozenset({1}))
    for _, found in detect_all(Scattered(records), config.input_rule, records, options, False):
        for part in (found.detections, found.by_class, found.candidates):
            assert set(part.labels) == {1}


def test_every_figure_is_in_its_range_and_in_the_json(config):
    truth = ground_truth(config.data, "val")
    found = assess(config, {"all": {image["id"] for image in truth["images"]}})
    tree = json.loads(json.dumps(found.to_dict()))
    assert tree["ap"] == found.evaluation.ap == tree["per_group"]["all"]
    assert tree["by_class_score"]["ap75"] == found.by_class.ap75
    assert tree["localisation"] == asdict(found.localisation)
    local = tree["localisation"]
    assert local["after_nms"]["all"]["boxes"] == sum(len(o.got) for o in found.outcomes)
    assert local["before_nms"]["all"]["boxes"] > local["after_nms"]["all"]["boxes"]
    assert local["after_nms"]["on_object"]["boxes"] == local["reliability"]["boxes"]
    for scores in (local["after_nms"]["all"], local["before_nms"]["on_object"]):
        assert all(abs(scores[s]["pearson"]) < 1 for s in ("cls_score", "quality", "ranking_score"))
    assert local["nms"]["objects"] == local["nms_by_class"]["objects"] > 5
    assert list(tree["precision_recall"]) == ["0.50", "0.75", "0.90"]
    assert all(len(curve) == 101 for curve in tree["precision_recall"].values())


def test_right_wrong_and_missed_add_up(config):
    found = assess(config)
    for outcome in found.outcomes:
        strong = outcome.above(found.best.score)
        assert (strong.found.scores > found.best.score).all()
        assert strong.right.sum() + strong.wrong.sum() == len(strong.got)
        assert strong.right.sum() + strong.missed.sum() == len(strong.objects.labels)
    rights = sum(o.above(found.best.score).right.sum() for o in found.outcomes)
    assert rights / found.best.detections == pytest.approx(found.best.precision)
    assert rights / found.evaluation.objects == pytest.approx(found.best.recall)


def test_detections_alone_have_coco_metrics_and_nothing_on_candidates(config):
    whole, part = assess(config), None
    assessor = Assessor(ground_truth(config.data, "val"), config.data.classes, {}, 1.0)
    for record, found in seen(config):
        assessor.add_detections(record.image_id, found.detections)
    part = assessor.result()
    assert part.evaluation == whole.evaluation
    assert part.best == whole.best
    assert (part.by_class, part.localisation, part.rows) == (None, None, None)
    assert part.to_dict()["localisation"] is None


class Blind(Scattered):
    """Without a quality branch."""

    def run(self, batch):
        found = super().run(batch)
        return found._replace(qualities=found.qualities * 0 + 1, scores=found.cls_scores)


def test_a_model_without_quality_ranks_by_its_class_score_and_is_told_so(config):
    truth = ground_truth(config.data, "val")
    records = load_split(config.data, "val")
    assessor = Assessor(truth, config.data.classes, {}, OPTIONS.iou)
    for record, found in detect_all(Blind(records), config.input_rule, records, OPTIONS, False):
        assessor.add(record.image_id, found)
    found = assessor.result()
    assert found.by_class == found.evaluation
    assert found.localisation.nms == found.localisation.nms_by_class
    assert not found.localisation.has_quality
    assert "gives every box the same quality" in report_page(found, ["blind"], None, [])
    assert "calibration error" not in "\n".join(table_lines(found, None))
    seeing = assess(config)
    assert seeing.localisation.has_quality
    assert "gives every box the same quality" not in report_page(seeing, ["seeing"], None, [])


def test_an_image_set_in_which_nothing_is_found_has_a_report_too(config):
    truth = ground_truth(config.data, "val")
    records = load_split(config.data, "val")
    nothing = DetectOptions(score=0.999, iou=0.6, max=20)
    assessor = Assessor(truth, config.data.classes, {}, OPTIONS.iou)
    for record, found in detect_all(Scattered(records), config.input_rule, records, nothing, False):
        assessor.add(record.image_id, found)
    found = assessor.result()
    assert (found.evaluation.ap, found.localisation.nms.share) == (0.0, None)
    assert "nan" not in json.dumps(found.to_dict()).lower()
    assert "<h1>none" in report_page(found, ["none"], None, [])
    assert table_lines(found, None)


def test_operating_points_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    scores, right = np.round(rng.uniform(0, 1, 80), 2), rng.random(80) < 0.4
    points = operating_points(scores, right, 50)
    assert len(points) == 100
    for point in points[::7]:
        strong = [ok for s, ok in zip(scores, right, strict=True) if s > point.score]
        assert point.detections == len(strong)
        precision, recall = sum(strong) / len(strong), sum(strong) / 50
        assert (point.precision, point.recall) == pytest.approx((precision, recall))
        both = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert point.f1 == pytest.approx(both)
    assert best_operating(points).f1 == max(point.f1 for point in points)
    nothing = operating_points(np.zeros(0), np.zeros(0, bool), 0)
    assert (nothing[0].precision, nothing[0].recall, nothing[0].f1) == (1.0, 0.0, 0.0)


def test_groups_come_from_a_key_of_the_image_records(config):
    truth = ground_truth(config.data, "val")
    for image in truth["images"]:
        image["camera"] = "left" if image["id"] < 3 else "right"
    groups = group_images(truth, "camera")
    assert groups == {"left": {1, 2}, "right": {3, 4, 5}}
    assert set(assess(config, groups).evaluation.per_group) == {"left", "right"}
