"""The compiled suppression keeps what a plain greedy loop keeps."""

import importlib.resources

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from clq_serve.nms import ClassNms

NMS = ClassNms()


def greedy(boxes, scores, labels, iou, score_threshold, max):
    """The same, as plain loops in float32."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if not scores[i] > np.float32(score_threshold) or len(kept) == max:
            continue
        if all(
            labels[i] != labels[j] or not overlap(boxes[i], boxes[j]) > np.float32(iou)
            for j in kept
        ):
            kept.append(i)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or down <= 0:
        return np.float32(0)
    both = across * down
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    classes=st.integers(1, 5),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]),
    threshold=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    limit=st.integers(1, 30),
)
def test_it_keeps_what_the_plain_loop_keeps(
    seed: int, count: int, classes: int, iou: float, threshold: float, limit: int
) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (count, 2))  # whole numbers and tenths: ties and equal overlaps
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (count, 2))], 1).astype(np.float32)
    scores = (rng.integers(0, 11, count) / 10).astype(np.float32)
    labels = rng.integers(0, classes, count)
    kept = NMS(boxes, scores, labels, iou, threshold, limit)
    assert kept.tolist() == greedy(boxes, scores, labels, iou, threshold, limit)


def test_a_score_equal_to_the_threshold_is_dropped_and_an_equal_iou_is_kept() -> None:
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1]], np.float32)  # IoU exactly 0.5
    scores = np.array([0.75, 0.5], np.float32)
    labels = np.zeros(2, np.int64)
    assert NMS(boxes, scores, labels, 0.5, 0.25, 10).tolist() == [0, 1]
    assert NMS(boxes, scores, labels, 0.49, 0.25, 10).tolist() == [0]
    assert NMS(boxes, scores, labels, 0.5, 0.5, 10).tolist() == [0]


def test_boxes_of_other_classes_do_not_suppress() -> None:
    boxes = np.zeros((3, 4), np.float32) + np.array([1, 1, 5, 5], np.float32)
    scores = np.array([0.7, 0.9, 0.8], np.float32)
    assert NMS(boxes, scores, np.array([4, 9, 4]), 0.5, 0.1, 10).tolist() == [1, 2]


def test_equal_scores_come_in_the_order_given_and_the_cut_is_over_all_classes() -> None:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in range(6)], np.float32)
    scores = np.full(6, 0.5, np.float32)
    labels = np.array([2, 1, 0, 2, 1, 0])
    assert NMS(boxes, scores, labels, 0.5, 0.1, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_above_the_threshold_gives_nothing(count: int) -> None:
    boxes = np.zeros((count, 4), np.float32)
    kept = NMS(boxes, np.zeros(count, np.float32), np.zeros(count, np.int64), 0.5, 0.0, 10)
    assert kept.tolist() == []


def test_the_shipped_graph_is_one_node_and_can_be_rebuilt() -> None:
    node = helper.make_node(
        "NonMaxSuppression",
        ["boxes", "scores", "max_per_class", "iou", "score_threshold"],
        ["selected"],
    )
    graph = helper.make_graph(
        [node],
        "class_nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "boxes", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "classes", "boxes"]),
            helper.make_tensor_value_info("max_per_class", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("iou", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("score_threshold", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, ["selected", 3])],
    )
    rebuilt = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8, producer_name="clq"
    )
    shipped = importlib.resources.files("clq_serve").joinpath("nms.onnx").read_bytes()
    assert onnx.load_from_string(shipped) == rebuilt
