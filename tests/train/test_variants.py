"""Every variant that docs/variants.md names: it trains, and it exports to what torch gives."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from shapes_data import shapes_tree

from clq_export.graph import write_graph
from clq_export.parity import MAX_BOX_PX, MAX_SCORE, difference
from clq_serve.candidates import Candidates
from clq_train.backbone import build_backbone
from clq_train.boxes import MAX_LOG_RATIO, centerness, decode_deltas
from clq_train.clq import Objects, StarOffsets, anchors_for
from clq_train.config import BackboneConfig, Config, load_config, parse_config
from clq_train.detector import ClqDetector
from clq_train.evaluate import TorchEngine

ROOT = Path(__file__).parents[2]
TABLE = re.findall(
    r"^\| `([\w.-]+)` \| .* \| (?:`(model[^`]*)`)? ?\|$",
    (ROOT / "docs/variants.md").read_text(),
    re.M,
)
VARIANTS = {name: overrides.split() for name, overrides in TABLE}
COCO = ["clq_r50_1x", "clq_r50_2x_ms", "clq_r101_2x_ms", "clq_x101_64x4d_2x_ms", "atss_r50_1x"]


def small(overrides):
    """A detector of 128 px images with the head that the overrides ask of clq_r50_1x."""
    head = load_config(ROOT / "train/configs/clq_r50_1x.yaml", overrides).model.head
    tree = shapes_tree(Path("nowhere"))
    tree["model"]["head"] = {
        **head.model_dump(),
        "channels": 32,
        "tower_depth": 1,
        "anchor_scale": 4,
    }
    torch.manual_seed(0)
    return ClqDetector(parse_config(tree, "variant").model, classes=2)


def some_images():
    images = torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)
    objects = [
        Objects(
            torch.tensor([[10.0, 20.0, 60.0, 90.0], [64.0, 8.0, 90.0, 30.0]]), torch.tensor([0, 1])
        ),
        Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    return images, objects


def test_the_table_has_every_row_of_the_paper():
    assert len(VARIANTS) == len(TABLE) == 18


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_every_parameter(name):
    detector = small(VARIANTS[name]).train()
    losses = detector.losses(*some_images())
    assert all(torch.isfinite(value) for value in losses.values())
    sum(value for key, value in losses.items() if key != "positives").backward()
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def graph_of(name):
    """What of a variant the exported graph depends on; alpha is a constant in it."""
    head = small(VARIANTS[name]).config.head
    return (
        head.align,
        head.align and head.align_offsets,
        head.lqe or head.centerness,
        head.lqe_input,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", {graph_of(name): name for name in VARIANTS}.values())
def test_every_graph_of_the_variants_exports_to_what_torch_gives(name, tmp_path):
    detector = small(VARIANTS[name]).eval()
    write_graph(detector, tmp_path / "model.onnx", "standard")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    batch = np.random.default_rng(0).integers(0, 256, (2, 128, 192, 3), dtype=np.uint8)
    found = session.run(list(Candidates._fields), {session.get_inputs()[0].name: batch})
    score, box_px = difference(Candidates(*found), TorchEngine(detector).run(batch))
    assert score <= MAX_SCORE
    assert box_px <= MAX_BOX_PX


@pytest.mark.slow
@pytest.mark.parametrize("stem", COCO)
def test_every_coco_configuration_trains_and_answers(stem):
    config: Config = load_config(ROOT / f"train/configs/{stem}.yaml", ["run.device=cpu"])
    assert len(config.data.classes) == 80
    detector = ClqDetector(config.model, len(config.data.classes)).train()
    images, objects = some_images()
    losses = detector.losses(images, objects)
    sum(value for key, value in losses.items() if key != "positives").backward()
    frozen = [name for name, p in detector.named_parameters() if p.grad is None]
    assert frozen  # the stem and stage 1
    assert all(name.startswith(("backbone.stages.0.", "backbone.stages.1.")) for name in frozen)
    found = TorchEngine(detector).run(images.numpy())
    assert found.scores.shape == (2, 1000)


def test_the_small_backbones_stay_small():
    def millions(backbone, **parts):
        tree = shapes_tree(Path("nowhere"))
        tree["model"] |= {"backbone": {"name": backbone}, **parts}
        detector = ClqDetector(parse_config(tree, "size").model, classes=14)
        return sum(p.numel() for p in detector.parameters()) / 1e6

    assert millions("regnet_nano") < 1.3
    assert millions("regnet_small") < 3
    assert millions("regnet_x_400mf") < 6


def test_a_deeper_backbone_with_the_weights_of_a_shallower_one_begins_as_that_one():
    torch.manual_seed(0)
    shallow = build_backbone(BackboneConfig(name="regnet_nano")).eval()
    deep = build_backbone(BackboneConfig(name="regnet_small")).eval()
    deep.load_state_dict(deep.state_dict() | shallow.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for mine, other in zip(deep(images), shallow(images), strict=True):
            assert torch.equal(mine, other)


def test_star_offsets_put_the_taps_on_the_regressed_box():
    torch.manual_seed(0)
    scale, stride, rows, cols = 4.0, 8, 3, 5
    deltas = torch.randn(1, 4, rows, cols)
    offsets = StarOffsets(scale)(deltas)
    (anchors,) = anchors_for([(rows, cols)], [stride], scale, torch.device("cpu"))
    boxes = decode_deltas(deltas[0].flatten(1).T, anchors)
    for row in range(rows):
        for col in range(cols):
            x1, y1, x2, y2 = (boxes[row * cols + col] / stride).tolist()
            places = [(y, x) for y in (y1, (y1 + y2) / 2, y2) for x in (x1, (x1 + x2) / 2, x2)]
            for tap, (y, x) in enumerate(places):
                found_y = row + tap // 3 - 1 + offsets[0, 2 * tap, row, col].item()
                found_x = col + tap % 3 - 1 + offsets[0, 2 * tap + 1, row, col].item()
                assert (found_y, found_x) == pytest.approx((y, x), abs=1e-4)


def test_star_offsets_stay_finite_for_absurd_regressions():
    deltas = torch.full((1, 4, 1, 1), 1e4)
    assert StarOffsets(8.0)(deltas).abs().max() < 1e5
    assert MAX_LOG_RATIO < 5


def test_centerness_equals_the_plain_formula():
    torch.manual_seed(0)
    anchors, boxes = torch.rand(40, 4) * 50, torch.rand(40, 4) * 50
    for values in (anchors, boxes):
        values[:, 2:] += values[:, :2]
    found = centerness(anchors, boxes)
    for a, b, value in zip(anchors.tolist(), boxes.tolist(), found.tolist(), strict=True):
        x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
        left, top, right, bottom = x - b[0], y - b[1], b[2] - x, b[3] - y
        inside = min(left, top, right, bottom) >= 0
        expected = (
            (min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)) ** 0.5
            if inside
            else 0.0
        )
        assert value == pytest.approx(expected, abs=1e-5)
