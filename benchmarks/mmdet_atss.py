"""MMDetection's ATSS-R50, to compare with: what it computes, and the time of a step of it.

    python benchmarks/mmdet_atss.py install FOLDER        mmdet 3.3.0 and what it imports
    python benchmarks/mmdet_atss.py reference FOLDER OUT  a checkpoint, and what the network gives

tests/train/test_mmdet_equal.py and train_step.py run it as a program of its own: torch comes from
the environment that runs it, everything of OpenMMLab from FOLDER. mmcv-lite has no compiled
operators, so `mmcv.ops` is a stub here; ATSS uses none of them on the CPU.
"""

import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from package_folder import install

PACKAGES = [
    *("mmdet==3.3.0", "mmcv-lite==2.1.0", "mmengine==0.10.7"),
    # what they import
    *("addict==2.4.0", "opencv-python-headless", "platformdirs", "scipy", "shapely", "six"),
    *("termcolor", "terminaltables==3.1.10", "yapf==0.43.0"),
]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# configs/atss/atss_r50_fpn_1x_coco.py of MMDetection 3.3.0, without what belongs to its data.
MODEL = dict(
    type="ATSS",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
    ),
    neck=dict(
        type="FPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        start_level=1,
        add_extra_convs="on_output",
        num_outs=5,
    ),
    bbox_head=dict(
        type="ATSSHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder",
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=100,
    ),
)


class Stub(types.ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `mmcv.ops` and everything below it."""

    def find_spec(self, name, path, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


def build(folder: Path, train_norms: bool = True):
    """The detector, randomly initialised as MMDetection does.

    train_norms  False: the backbone's norms keep their factors and biases too, as in our
                 configurations
    """
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, StubFinder())
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.logging import MMLogger

    MMLogger.get_instance("mmengine", log_level="ERROR")  # else a page about every weight
    register_all_modules()
    norm = dict(type="BN", requires_grad=train_norms)
    model = MODELS.build(MODEL | dict(backbone=MODEL["backbone"] | dict(norm_cfg=norm)))
    model.init_weights()
    return model


def shake(model) -> None:
    """Random values where an initialisation has zeros and ones, so that a mistake would show."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_var", "scale")) or (
                name.endswith("weight") and value.dim() == 1
            ):
                value.uniform_(0.8, 1.2)
            elif name.endswith(("bias", "running_mean")) and "atss_cls" not in name:
                value.normal_(std=0.1)
            elif ".atss_" in name and name.endswith("weight"):
                value.normal_(std=0.03)


def pixels(images):
    """As the data preprocessor does: uint8 RGB (B, H, W, 3) -> float32 (B, 3, H, W)."""
    return (images.permute(0, 3, 1, 2).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)


def objects(rng, count, height, width):
    """Boxes (count, 4) float32, partly whole numbers, tiny, doubled and beyond the edge."""
    size = np.exp(rng.uniform(np.log(3), np.log(max(height, width)), (count, 2)))
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    if rng.random() < 0.5:
        boxes = np.round(boxes)
    if count > 2:
        boxes[-1] = boxes[0]
    return boxes.astype(np.float32)


def reference(folder: Path, out: Path) -> None:
    """Writes OUT/checkpoint.pth and OUT/reference.npz, see the test for what is in it."""
    torch.manual_seed(0)
    model = build(folder).train()
    shake(model)
    save(model, out / "checkpoint.pth")
    rng = np.random.default_rng(0)
    found = {}
    # 1. the network
    images = rng.integers(0, 256, (2, 128, 256, 3), dtype=np.uint8)
    with torch.inference_mode():
        outputs = model.bbox_head(model.extract_feat(pixels(torch.from_numpy(images))))
    found["images"] = images
    for name, levels in zip(("cls", "deltas", "quality"), outputs, strict=True):
        found[name] = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in levels], 1).numpy()
    # 2. the losses
    from mmengine.structures import InstanceData

    truth = []
    for i, count in enumerate((5, 3)):
        boxes, labels = objects(rng, count, 128, 256), rng.integers(0, 80, count)
        found[f"boxes_{i}"], found[f"labels_{i}"] = boxes, labels
        truth.append(InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(labels)))
    metas = [dict(img_shape=(128, 256), pad_shape=(128, 256))] * 2
    losses = model.bbox_head.loss_by_feat(*outputs, truth, metas)
    for name, value in losses.items():
        found[name] = float(sum(value))
    # 3. the assignment
    head = model.bbox_head
    for case in range(300):
        height, width = rng.integers(1, 5, 2) * 128
        sizes = [(height // s, width // s) for s in (8, 16, 32, 64, 128)]
        priors = head.prior_generator.grid_priors(sizes, device="cpu")
        boxes = torch.from_numpy(objects(rng, rng.integers(1, 12), height, width))
        assigned = head.assigner.assign(
            InstanceData(priors=torch.cat(priors)),
            [len(level) for level in priors],
            InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long)),
        )
        found[f"case_{case}_size"] = np.array([height, width])
        found[f"case_{case}_boxes"] = boxes.numpy()
        found[f"case_{case}_match"] = assigned.gt_inds.numpy() - 1
    np.savez(out / "reference.npz", **found)


def save(model, path: Path) -> None:
    """A checkpoint as MMEngine's runner writes it."""
    from mmdet.datasets import CocoDataset
    from mmengine.config import Config
    from mmengine.logging import MessageHub
    from mmengine.runner.checkpoint import save_checkpoint

    hub = MessageHub.get_instance("run")
    hub.update_scalar("train/loss", np.float64(1.5))
    hub.update_scalar("train/lr", 0.01)
    text = Config(dict(model=MODEL)).pretty_text
    meta = dict(cfg=text, dataset_meta=CocoDataset.METAINFO, epoch=12, iter=1)
    tree = dict(meta=meta, state_dict=model.state_dict(), message_hub=hub.state_dict())
    save_checkpoint(tree, str(path))


def step(folder: Path, *settings: Path) -> None:
    """Takes training steps as train_step.py asks: BATCH HEIGHT WIDTH OBJECTS [norms|bfloat16].

    Without a word more the backbone's norms are frozen; bfloat16 is torch's autocast around the
    whole step, since MMEngine's own is for GPUs.
    """
    from train_step import answer, samples

    count, height, width, objects = (int(str(size)) for size in settings[:4])
    words = [str(word) for word in settings[4:]]
    model = build(folder, train_norms="norms" in words).train()
    from mmdet.structures import DetDataSample
    from mmengine.optim import OptimWrapper
    from mmengine.structures import InstanceData

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = OptimWrapper(torch.optim.SGD(trainable, 0.01, momentum=0.9, weight_decay=1e-4))
    images, boxes, labels = samples(count, height, width, objects, 80)
    shape = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
    truth = []
    for i in range(count):
        truth.append(DetDataSample(metainfo=shape))
        truth[i].gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes[i]), labels=torch.from_numpy(labels[i])
        )
    bgr = torch.from_numpy(images).permute(0, 3, 1, 2).flip(1)

    def take(_: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in words):
            model.train_step(dict(inputs=list(bgr), data_samples=truth), optimizer)

    answer(take)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    commands = {
        "install": partial(install, packages=PACKAGES),
        "reference": reference,
        "step": step,
    }
    commands[command](*map(Path, arguments))
