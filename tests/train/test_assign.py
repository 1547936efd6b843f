"""ATSS assignment against a plain-loop reference, and its edge cases."""

import statistics

import pytest
import torch

from clq_train.boxes import pairwise_iou
from clq_train.clq import anchors_for, atss_assign

STRIDES, SIZES = (8, 16, 32), ((16, 24), (8, 12), (4, 6))


def make_anchors(scale=4.0):
    return anchors_for(SIZES, STRIDES, scale, torch.device("cpu"))


def loop_assign(levels, boxes):
    """Algorithm 1 of the ATSS paper, one object and one anchor at a time."""
    flat = torch.cat(levels).tolist()
    owner, owner_iou = [-1] * len(flat), [-1.0] * len(flat)
    for m, box in enumerate(boxes.tolist()):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for level in levels:
            distances = []
            for i in range(start, start + len(level)):
                a = flat[i]
                ax, ay = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
                distances.append(((ax - cx) ** 2 + (ay - cy) ** 2, i))
            candidates += [i for _, i in sorted(distances)[:9]]
            start += len(level)
        ious = [
            pairwise_iou(torch.tensor([flat[i]]), torch.tensor([box])).item() for i in candidates
        ]
        threshold = statistics.mean(ious) + statistics.stdev(ious)
        for i, iou in zip(candidates, ious, strict=True):
            ax, ay = (flat[i][0] + flat[i][2]) / 2, (flat[i][1] + flat[i][3]) / 2
            inside = min(ax - box[0], ay - box[1], box[2] - ax, box[3] - ay) > 0.01
            if iou >= threshold - 1e-7 and inside and iou > owner_iou[i]:
                owner[i], owner_iou[i] = m, iou
    return owner


@pytest.mark.parametrize("seed", range(20))
def test_assignment_equals_the_plain_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 12, (1,), generator=generator))
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([150.0, 90.0])
    size = torch.rand(count, 2, generator=generator).pow(2) * 90 + 3
    boxes = torch.cat([corner, corner + size], 1)
    levels = make_anchors()
    assert atss_assign(levels, boxes).tolist() == loop_assign(levels, boxes)


def test_anchors_sit_on_the_grid_without_a_half_cell_offset():
    first = make_anchors()[1]
    assert first[0].tolist() == [-32, -32, 32, 32]
    assert first[1].tolist() == [-16, -32, 48, 32]  # next column, one stride to the right
    assert first[12].tolist() == [-32, -16, 32, 48]  # next row


def test_an_image_without_objects_has_no_positives():
    assert (atss_assign(make_anchors(), torch.zeros(0, 4)) == -1).all()


def test_an_object_smaller_than_a_cell_gets_an_anchor_only_where_a_centre_is_inside():
    on_grid = torch.tensor([[30.0, 30.0, 35.0, 35.0]])  # holds the centre (32, 32)
    off_grid = torch.tensor([[33.0, 33.0, 38.0, 38.0]])  # holds no centre of stride 8
    levels = make_anchors()
    flat = torch.cat(levels)
    matched = flat[atss_assign(levels, on_grid) >= 0]
    assert len(matched) > 0
    centres = (matched[:, :2] + matched[:, 2:]) / 2
    assert (centres == 32).all()
    assert (atss_assign(levels, off_grid) == -1).all()


def test_a_contested_anchor_goes_to_the_object_of_larger_overlap():
    boxes = torch.tensor([[36.0, 36.0, 72.0, 72.0], [40.0, 40.0, 73.0, 73.0]])
    levels = make_anchors()
    flat = torch.cat(levels)
    alone = [atss_assign(levels, boxes[i : i + 1]) >= 0 for i in range(2)]
    contested = alone[0] & alone[1]
    assert contested.any()
    both = atss_assign(levels, boxes)
    larger = pairwise_iou(flat, boxes).argmax(1)
    assert (both[contested] == larger[contested]).all()
    assert (both[alone[0] & ~alone[1]] == 0).all()


def test_a_map_of_fewer_than_nine_cells_gives_all_of_them_as_candidates():
    levels = anchors_for([(2, 2), (1, 1)], (32, 64), 4.0, torch.device("cpu"))
    boxes = torch.tensor([[10.0, 12.0, 60.0, 55.0]])
    assert atss_assign(levels, boxes).tolist() == loop_assign(levels, boxes)
