"""MMDetection's checkpoints: every key mapped or named, pixels converted, no foreign code run."""

import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from clq_train.config import HeadConfig, load_config
from clq_train.errors import CheckpointError, ConfigError
from clq_train.import_mmdet import read_mmdet
from clq_train.import_pickle import Unread, read_pickle
from clq_train.option_pairs import option_pairs

ROOT = Path(__file__).parents[2]
CONV = "backbone.conv1.weight"
RGB = (
    "model = dict(data_preprocessor=dict("
    "bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))"
)


@pytest.fixture(scope="module")
def head() -> HeadConfig:
    return load_config(ROOT / "train/configs/atss_r50_1x.yaml", []).model.head


def checkpoint(tmp_path, tensors, **meta):
    path = tmp_path / "epoch_12.pth"
    torch.save({"state_dict": OrderedDict(tensors), "meta": meta}, path)
    return path


def weight():
    return torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))


def test_names_become_the_detectors_and_what_has_no_place_is_named(tmp_path, head):
    one = torch.ones(1)
    tensors = {
        "backbone.layer3.5.bn2.running_var": one,
        "neck.lateral_convs.2.conv.bias": one,
        "neck.fpn_convs.1.conv.weight": one,
        "neck.fpn_convs.4.conv.weight": one,
        "bbox_head.cls_convs.3.gn.weight": one,
        "bbox_head.reg_convs.0.conv.weight": one,
        "bbox_head.atss_cls.bias": one,
        "bbox_head.atss_centerness.bias": one,
        "bbox_head.scales.1.scale": torch.tensor(2.0),
        "bbox_head.scales.0.scale": torch.tensor(1.5),
        "bbox_head.gfl_cls.bias": one,
        "backbone.layer2.0.conv_offset.bias": one,
        "ema_backbone_conv1_weight": one,
        "epoch": 12,
    }
    found = read_mmdet(checkpoint(tmp_path, tensors), head, None, {})
    assert {name: source for name, (source, _) in found.mapped.items()} == {
        "backbone.stages.3.5.bn2.running_var": "backbone.layer3.5.bn2.running_var",
        "backbone.stages.2.0.conv_offset.bias": "backbone.layer2.0.conv_offset.bias",
        "neck.lateral.2.bias": "neck.lateral_convs.2.conv.bias",
        "neck.output.1.weight": "neck.fpn_convs.1.conv.weight",
        "neck.extra.1.weight": "neck.fpn_convs.4.conv.weight",
        "head.cls_tower.norms.3.norm.weight": "bbox_head.cls_convs.3.gn.weight",
        "head.reg_tower.convs.0.weight": "bbox_head.reg_convs.0.conv.weight",
        "head.cls.bias": "bbox_head.atss_cls.bias",
        "head.quality.bias": "bbox_head.atss_centerness.bias",
        "head.scales": "bbox_head.scales",
    }
    assert found.mapped["head.scales"][1].tolist() == [1.5, 2.0]
    assert found.left == {
        "bbox_head.gfl_cls.bias": "no counterpart in the detector; --map names one",
        "ema_backbone_conv1_weight": "no counterpart in the detector; --map names one",
        "epoch": "not a tensor",
    }


def test_centerness_is_not_taken_for_the_predicted_iou_unless_told(tmp_path, head):
    lqe = head.model_copy(update={"centerness": False, "lqe": True})
    own = torch.full((1,), 3.0)
    path = checkpoint(
        tmp_path, {"bbox_head.atss_centerness.bias": torch.ones(1), "bbox_head.iou.bias": own}
    )
    found = read_mmdet(path, lqe, None, {})
    assert "predicts centerness" in found.left["bbox_head.atss_centerness.bias"]
    assert found.mapped == {}
    found = read_mmdet(path, lqe, None, {"bbox_head.iou": "head.quality"})
    assert found.mapped == {"head.quality.bias": ("bbox_head.iou.bias", own)}
    found = read_mmdet(
        path,
        lqe,
        None,
        option_pairs("--map", ["bbox_head.atss_centerness=head.quality"], "MODULE=OURS"),
    )
    assert "head.quality.bias" in found.mapped
    with pytest.raises(ConfigError, match="--map 'head': expected MODULE=OURS"):
        option_pairs("--map", ["head"], "MODULE=OURS")


def test_two_tensors_for_one_place_are_said(tmp_path, head):
    tensors = {"bbox_head.atss_reg.bias": torch.ones(4), "bbox_head.fine.bias": torch.ones(4)}
    found = read_mmdet(checkpoint(tmp_path, tensors), head, None, {"bbox_head.fine": "head.reg"})
    assert found.left == {"bbox_head.fine.bias": "bbox_head.atss_reg.bias is head.reg.bias already"}


def test_a_pyramid_that_starts_at_stride_4_is_left_over(tmp_path, head):
    tensors = {f"neck.lateral_convs.{i}.conv.weight": torch.ones(1) for i in range(4)}
    found = read_mmdet(checkpoint(tmp_path, tensors), head, None, {})
    assert set(found.left.values()) == {"its pyramid starts at stride 4, the detector's at 8"}


@pytest.mark.parametrize("key", ["cfg", "config"])  # 3.x, 2.x
def test_the_first_convolution_sees_the_same_pixels(tmp_path, head, key):
    """Against the convolution of the file on its own normalisation, from the same RGB image."""
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 255
    mean, std = [103.53, 116.28, 123.675], [1.0, 2.0, 4.0]
    text = f"cfg = dict(to_rgb=False, mean={mean}, std={std}, init_cfg=dict(std=0.01))"
    path = checkpoint(tmp_path, {CONV: weight()}, **{key: text})
    found = read_mmdet(path, head, None, {})
    value = found.mapped["backbone.stages.0.0.weight"][1]
    assert "BGR: the first convolution is turned to RGB" in found.notes[0]
    column = torch.tensor([mean, std]).view(2, 1, 3, 1, 1)
    theirs = (image.flip(1) - column[0]) / column[1]
    ours = (image - column[0].flip(1)) / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(
        torch.conv2d(ours, value, padding=3), torch.conv2d(theirs, weight(), padding=3),
        rtol=1e-4, atol=1e-2,
    )  # fmt: skip


def test_rgb_pixels_leave_the_first_convolution_as_it_is(tmp_path, head):
    found = read_mmdet(checkpoint(tmp_path, {CONV: weight()}, cfg=RGB), head, None, {})
    assert torch.equal(found.mapped["backbone.stages.0.0.weight"][1], weight())
    assert found.notes == ["its pixels are RGB"]
    bare = tmp_path / "bare.pth"
    torch.save({CONV: weight()}, bare)  # a state dict alone
    found = read_mmdet(bare, head, "bgr", {})
    assert torch.equal(found.mapped["backbone.stages.0.0.weight"][1], weight().flip(1))


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        (RGB + "\nstyle = dict(style='caffe')", None, "its backbone is of style 'caffe'"),
        ("not Python:", None, "does not say which order .* --channels can"),
        (RGB, "bgr", "says RGB which order its pixels' channels have; --channels says BGR"),
        (RGB.replace("123.675", "127.5"), None, r"normalises its pixels by mean \[127\.5, 116"),
    ],
)
def test_pixels_that_the_detector_can_not_give_are_refused(tmp_path, head, text, channels, message):
    path = checkpoint(tmp_path, {CONV: weight()}, cfg=text)
    with pytest.raises(CheckpointError, match=rf"epoch_12\.pth: {message}"):
        read_mmdet(path, head, channels, {})


def test_class_names_and_another_size_of_anchors_are_read(tmp_path, head):
    text = "head = dict(anchor_generator=dict(octave_base_scale=4, strides=[8, 16]))"
    tensors = {"bbox_head.atss_cls.bias": torch.ones(2)}
    path = checkpoint(tmp_path, tensors, cfg=text, dataset_meta={"classes": ("cat", "dog")})
    found = read_mmdet(path, head, None, {})
    assert found.classes == ["cat", "dog"]
    assert found.notes == ["its anchors are 4 strides wide, model.head.anchor_scale is 8"]
    path = checkpoint(tmp_path, tensors, CLASSES=("cat", "dog"))
    assert read_mmdet(path, head, None, {}).classes == ["cat", "dog"]


@pytest.mark.parametrize("zipped", [True, False])
def test_histories_and_numpy_values_of_a_checkpoint_are_passed_over(tmp_path, zipped):
    path = tmp_path / "epoch_1.pth"
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "best": np.float64(0.4), "loss": np.arange(3.0)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    tree = read_pickle(path)
    assert torch.equal(tree["state_dict"]["a"], torch.ones(2))
    assert isinstance(tree["best"], Unread)
    assert isinstance(tree["loss"], Unread)


class Wants:
    """Pickled as a call of a function, which loading it would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "before", "name"),
    [(os.mkdir, [], r"posix\.mkdir"), (shutil.copyfile, [__file__], r"shutil\.copyfile")],
)
def test_a_pickle_that_wants_more_is_refused_with_what_it_wanted(
    tmp_path, head, function, before, name
):
    made = tmp_path / "made"
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": {CONV: weight()}, "hook": Wants(function, *before, str(made))}, path)
    with pytest.raises(CheckpointError, match=rf"epoch_1\.pth: its pickle wants {name}, and only"):
        read_mmdet(path, head, "rgb", {})
    assert not made.exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path, head):
    path = tmp_path / "notes.pth"
    path.write_text("no pickle")
    with pytest.raises(CheckpointError, match=r"notes\.pth: no file of torch\.save"):
        read_mmdet(path, head, None, {})
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"notes\.pth: holds a list, not a mapping"):
        read_mmdet(path, head, None, {})
    with pytest.raises(CheckpointError, match=r"gone\.pth: No such file"):
        read_mmdet(tmp_path / "gone.pth", head, None, {})
