"""COCO's metrics: the same numbers as pycocotools, on made data and on real detections."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapes_data import shapes_tree

from clq_serve.bundle import load_bundle
from clq_serve.detector import DetectOptions
from clq_serve.engine import OnnxEngine
from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.evaluate import detect_all
from clq_train.measure import count, measure
from clq_train.results import coco_results
from clq_train.truth import ground_truth

NAMES = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
]


def by_pycocotools(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        counting = COCOeval(coco, coco.loadRes([{**r} for r in results]), "bbox")
        counting.evaluate()
        counting.accumulate()
        counting.summarize()
    return counting


def random_case(seed, images=12, classes=4):
    """Objects of all sizes, some of them crowds, and detections near them, astray or doubled."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 12)):
            box = np.concatenate([rng.uniform(0, 300, 2), rng.choice([8, 40, 150], 2)])
            box[2:] *= rng.uniform(0.7, 1.4, 2)
            label = int(rng.integers(classes - 1))  # the last class has no objects
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 4)):
                near = box + rng.normal(0, 0.08, 4) * box[[2, 3, 2, 3]]
                guess = label if rng.random() < 0.9 else int(rng.integers(classes))
                score = float(np.round(rng.uniform(0.05, 1), 1))  # many scores are equal
                result = {"image_id": image_id, "category_id": guess, "score": score}
                results.append(result | {"bbox": near.tolist()})
    return {
        "info": {},
        "images": [{"id": i, "width": 500, "height": 500} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(classes)],
    }, results


def assert_equal(truth, results, classes):
    expected = by_pycocotools(truth, results)
    found = measure(truth, results, classes)
    assert [getattr(found, name) for name in NAMES] == pytest.approx(expected.stats, abs=1e-12)
    tables = count(truth, results)
    np.testing.assert_allclose(tables.precision, expected.eval["precision"], atol=1e-12)
    np.testing.assert_allclose(tables.recall, expected.eval["recall"], atol=1e-12)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_every_number_is_that_of_pycocotools_on_random_data(seed):
    truth, results = random_case(seed)
    found = assert_equal(truth, results, list("abcd"))
    assert 0 < found.ap < 1
    assert found.per_class["d"].ap == found.per_class["d"].ar_100 == -1
    assert sum(figures.objects for figures in found.per_class.values()) == found.objects


def test_every_number_is_that_of_pycocotools_on_what_a_model_finds(bundle_folder, shapes_folder):
    config = parse_config(shapes_tree(shapes_folder), "test")
    bundle = load_bundle(bundle_folder)
    results = []
    for record, found in detect_all(
        OnnxEngine(bundle, 1),
        bundle.manifest.input.rule,
        load_split(config.data, "val"),
        DetectOptions(0.01, 0.6, 100),
        progress=False,
    ):
        results += coco_results(record.image_id, found.detections)
    assert len(results) > 20
    assert_equal(ground_truth(config.data, "val"), results, config.data.classes)


def test_nothing_found_is_zero_and_nothing_to_find_is_minus_one():
    truth, _ = random_case(0)
    found = measure(truth, [], list("abcd"))
    assert (found.ap, found.ap50, found.ar_100, found.per_class["a"].ap) == (0, 0, 0, 0)
    assert found.per_class["d"].ap == -1


def test_what_is_measured_stays_as_it_was():
    truth, results = random_case(1)
    before = repr((truth, results))
    assert measure(truth, results, list("abcd")) == measure(truth, results, list("abcd"))
    assert repr((truth, results)) == before


def test_ap_at_each_overlap_averages_to_ap():
    truth, results = random_case(2)
    found = measure(truth, results, list("abcd"))
    assert found.ap_by_iou[0] == found.ap50
    assert found.ap_by_iou[5] == found.ap75
    assert np.mean(found.ap_by_iou) == pytest.approx(found.ap)
