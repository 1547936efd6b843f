"""torchvision's FCOS and RetinaNet heads as rows of ablation.py.

Their towers are their own: FCOS with as many convolutions as ours, RetinaNet always four. Losses,
assignment, anchors and suppression are torchvision's; backbone, neck, crops, schedule and the way
to the measured figures are ours.
"""

from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions
from clq_serve.preprocess import Pixels
from clq_train.average import Average
from clq_train.batches import batches
from clq_train.coco import load_split
from clq_train.config import Config
from clq_train.detector import PIXEL_MEAN, PIXEL_STD, ClqDetector
from clq_train.device import autocast
from clq_train.evaluate import evaluate
from clq_train.init_weights import load_init
from clq_train.measure import Evaluation
from clq_train.schedule import build_optimizer, learning_rate

PEERS = ("torchvision-fcos", "torchvision-retinanet")
SLOTS = 300


class Trunk(nn.Module):
    """Our backbone and neck, as torchvision's detectors want them."""

    def __init__(self, detector: ClqDetector) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.out_channels = detector.config.neck.channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        levels = self.neck(self.backbone(images))
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


def build_peer(name: str, config: Config) -> nn.Module:
    """The peer with the weights that `init` has for its trunk."""
    detector = ClqDetector(config.model, len(config.data.classes))
    load_init(detector, config.init)
    trunk, classes, channels = Trunk(detector), len(config.data.classes), config.model.neck.channels
    same = {
        "image_mean": [v / 255 for v in PIXEL_MEAN],
        "image_std": [v / 255 for v in PIXEL_STD],
        "score_thresh": config.eval.score,
        "nms_thresh": config.eval.iou,
        "detections_per_img": SLOTS,
        "topk_candidates": 1000,
        "size_divisible": config.model.strides[-1],
        "_skip_resize": True,
    }
    if name == "torchvision-fcos":
        anchors = AnchorGenerator(
            tuple((s,) for s in config.model.strides), ((1.0,),) * len(config.model.strides)
        )
        head = FCOSHead(channels, 1, classes, num_convs=config.model.head.tower_depth)
        return FCOS(trunk, classes, anchor_generator=anchors, head=head, **same)
    side = config.model.head.anchor_scale
    sizes = tuple(
        tuple(int(side * s * 2 ** (i / 3)) for i in range(3)) for s in config.model.strides
    )
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(channels, 9, classes, norm_layer=partial(nn.GroupNorm, 32))
    return RetinaNet(trunk, classes, anchor_generator=anchors, head=head, **same)


class PeerEngine:
    """A torchvision detector, suppression and all, behind the interface of clq_serve's engines."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()

    @torch.inference_mode()
    def run(self, batch: Pixels) -> Candidates:
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        found = self.model(list(images))
        count = len(found)
        boxes = np.zeros((count, SLOTS, 4), np.float32)
        scores, labels = np.zeros((count, SLOTS), np.float32), np.zeros((count, SLOTS), np.int64)
        for i, one in enumerate(found):
            n = len(one["scores"])
            order = one["scores"].argsort(descending=True)
            boxes[i, :n] = one["boxes"][order]
            scores[i, :n], labels[i, :n] = one["scores"][order], one["labels"][order]
        return Candidates(boxes, scores, labels, scores, np.ones_like(scores))


def train_peer(name: str, config: Config, split: str) -> Evaluation:
    """The evaluation of a peer after the steps of the configuration."""
    torch.manual_seed(config.run.seed)
    model = build_peer(name, config).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, config.schedule)
    average = Average(model, config.schedule.ema) if config.schedule.ema else None
    for step, (batch,) in enumerate(batches(load_split(config.data, "train"), config, 0), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, step)
        images = list(batch.images.permute(0, 3, 1, 2).float() / 255)
        targets = [{"boxes": o.boxes, "labels": o.labels} for o in batch.objects]
        with autocast(config.run.autocast, torch.device("cpu")):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), config.schedule.clip_norm)
        optimizer.step()
        if average is not None:
            average.update(model, step)
    if average is not None:
        model.load_state_dict(average.weights)
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    return evaluate(PeerEngine(model), config.input_rule, config.data, split, options)
