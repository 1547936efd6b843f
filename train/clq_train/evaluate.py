"""COCO average precision through the service's own decoding, resizing and suppression."""

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from clq_serve.candidates import Candidates
from clq_serve.detector import Detections, DetectOptions, Detector, Engine
from clq_serve.nms import ClassNms
from clq_serve.preprocess import ImageLimits, InputRule, Pixels, decode_image
from clq_train.coco import category_labels, load_split, read_annotations, split_paths
from clq_train.config import DataConfig
from clq_train.detector import ClqDetector
from clq_train.device import open_device
from clq_train.errors import DataError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """COCO metrics in [0, 1]; -1 where there is nothing to measure."""

    images: int
    ap: float  # mean over IoU 0.50 .. 0.95 and classes, 100 detections an image
    ap50: float
    ap75: float
    ap_small: float  # objects under 32 x 32 px
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]
    per_group: dict[str, float]  # AP by the value of a key of the image records; empty if not asked


class TorchEngine:
    """The trained module behind the interface of clq_serve's engines."""

    def __init__(self, model: ClqDetector, device: str = "cpu") -> None:
        self._device = open_device(device)
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def run(self, batch: Pixels) -> Candidates:
        found = self._model.candidates(torch.from_numpy(batch).to(self._device))
        return Candidates(*(tensor.cpu().numpy() for tensor in found))


def evaluate(
    engine: Engine,
    rule: InputRule,
    data: DataConfig,
    split: str,
    options: DetectOptions,
    by: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Runs every image of the split through the service's detector and measures it as COCO does.

    by  key of the image records, such as a source or a camera, to measure each value of separately

    Raises DataError as load_split does, and if an image record lacks the key.
    """
    records = load_split(data, split)
    detector = Detector(engine, ClassNms(), rule)
    results: list[dict[str, Any]] = []
    for record in tqdm(records, disable=not progress, unit="image", dynamic_ncols=True):
        image = decode_image(record.path.read_bytes(), ImageLimits(), rule.background)
        (found,), _ = detector.detect([image], options)
        results += coco_results(record.image_id, found)
    truth = ground_truth(data, split)
    groups = {} if by is None else group_images(truth, by)
    per_group = {
        name: measure(only_images(truth, ids), results, data.classes).ap
        for name, ids in groups.items()
    }
    return replace(measure(truth, results, data.classes), per_group=per_group)


def group_images(truth: dict[str, Any], key: str) -> dict[str, set[int]]:
    """Image ids by the value that their records have under a key."""
    groups: dict[str, set[int]] = {}
    for image in truth["images"]:
        if key not in image:
            raise DataError(f"image {image['id']!r} has no key {key!r}; it has {', '.join(image)}")
        groups.setdefault(str(image[key]), set()).add(image["id"])
    return groups


def only_images(truth: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """The part of a COCO tree that is about these images."""
    images = [image for image in truth["images"] if image["id"] in ids]
    annotations = [entry for entry in truth["annotations"] if entry["image_id"] in ids]
    return {**truth, "images": images, "annotations": annotations}


def coco_results(image_id: int, found: Detections) -> list[dict[str, Any]]:
    """Detections in COCO's result format; category_id is the label."""
    boxes = found.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {"image_id": image_id, "category_id": int(label), "bbox": box.tolist(), "score": float(s)}
        for box, label, s in zip(boxes, found.labels, found.scores, strict=True)
    ]


def ground_truth(data: DataConfig, split: str) -> dict[str, Any]:
    """The split's annotations with merged and dropped categories; category_id is the label.

    Crowd regions stay: COCO neither rewards nor punishes a detection on one.
    """
    source, _ = split_paths(data, split)
    tree = read_annotations(source)
    labels = category_labels(data, tree["categories"], source)
    annotations = []
    for entry in tree["annotations"]:
        label = labels[entry["category_id"]]
        if label is not None:
            area = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
            crowd = entry.get("iscrowd", 0)
            annotations.append({**entry, "category_id": label, "area": area, "iscrowd": crowd})
    categories = [{"id": label, "name": name} for label, name in enumerate(data.classes)]
    return {
        "info": {},
        "images": tree["images"],
        "annotations": annotations,
        "categories": categories,
    }


def measure(truth: dict[str, Any], results: list[dict[str, Any]], classes: list[str]) -> Evaluation:
    """COCO's metrics of the results that are about the tree's images (pycocotools counts)."""
    ids = {image["id"] for image in truth["images"]}
    results = [result for result in results if result["image_id"] in ids]
    if not results:
        zero = {name: 0.0 for name in classes}
        return Evaluation(len(ids), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, zero, {})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        counted = COCOeval(coco, coco.loadRes(results), "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    precision = counted.eval["precision"]  # (IoU, recall, class, area, detections)
    per_class = {}
    for label, name in enumerate(classes):
        values = precision[:, :, label, 0, 2]
        valid = values[values > -1]
        per_class[name] = float(valid.mean()) if valid.size else -1.0
    return Evaluation(len(ids), *(float(v) for v in counted.stats[:6]), per_class, {})
