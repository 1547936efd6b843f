"""What stands between our data and engines and the YOLO of benchmarks/yolo_peer.py."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clq_train.coco import Record

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("yolo_train")


def test_lines_hold_class_and_centre_and_size_as_shares_of_the_image(peer):
    boxes = np.array([[0, 0, 1280, 800], [320, 200, 480, 240], [0.5, 1.25, 7.25, 3]], np.float32)
    record = Record(1, Path("a.png"), 1280, 800, boxes, np.array([3, 0, 13]))
    rows = [line.split() for line in peer.yolo_lines(record).splitlines()]
    assert rows[0] == ["3", "0.5000000", "0.5000000", "1.0000000", "1.0000000"]
    assert rows[1] == ["0", "0.3125000", "0.2750000", "0.1250000", "0.0500000"]
    for row, box in zip(rows, boxes, strict=True):
        x, y, width, height = (float(share) for share in row[1:])
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert np.array(corners) * [1280, 800, 1280, 800] == pytest.approx(box, abs=1e-3)


def test_an_image_without_objects_has_no_lines(peer):
    record = Record(1, Path("a.png"), 8, 8, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert peer.yolo_lines(record) == ""


def test_the_engine_gives_every_class_of_every_anchor_by_descending_score(peer):
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(2, 4 + 3, 5, generator=generator)  # 5 anchors, 3 classes

    class Fixed(nn.Module):
        def forward(self, images):
            assert images.shape == (2, 3, 32, 64)
            assert images.max() <= 1
            return found, {}

    candidates = peer.YoloEngine(Fixed()).run(np.full((2, 32, 64, 3), 255, np.uint8))
    for image in range(2):
        expected = []
        for anchor in range(5):
            x, y, width, height = found[image, :4, anchor].tolist()
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            for label in range(3):
                expected.append((found[image, 4 + label, anchor].item(), label, box))
        expected.sort(key=lambda row: -row[0])
        assert candidates.scores[image].tolist() == [score for score, _, _ in expected]
        assert candidates.labels[image].tolist() == [label for _, label, _ in expected]
        np.testing.assert_allclose(candidates.boxes[image], [b for *_, b in expected], atol=1e-6)
    assert (candidates.cls_scores == candidates.scores).all()
    assert (candidates.qualities == 1).all()
