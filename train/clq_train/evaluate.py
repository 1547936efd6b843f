"""Runs a model over images through the service's own decoding, resizing and suppression."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from clq_serve.candidates import Candidates
from clq_serve.detector import Detections, DetectOptions, Detector, Engine, in_image
from clq_serve.nms import ClassNms
from clq_serve.preprocess import InputRule, Pixels
from clq_train.coco import Record, read_sound_split, records_of
from clq_train.config import DataConfig
from clq_train.detector import ClqDetector
from clq_train.device import open_device
from clq_train.measure import Evaluation, Result, group_aps, measure
from clq_train.results import coco_results
from clq_train.samples import read_pixels
from clq_train.truth import group_images, truth_of


class TorchEngine:
    """The trained module behind the interface of clq_serve's engines."""

    def __init__(self, model: ClqDetector, device: str = "cpu") -> None:
        self._device = open_device(device)
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def run(self, batch: Pixels) -> Candidates:
        found = self._model.candidates(torch.from_numpy(batch).to(self._device))
        return Candidates(*(tensor.cpu().numpy() for tensor in found))


@dataclass(frozen=True, slots=True)
class Found:
    """What a model finds in one image; boxes in pixels of the upright image, clipped to it.

    detections  what the service answers
    by_class    the same candidates, ranked and suppressed by their class score alone
    candidates  (K, ...) what both chose from: above the score threshold, before the suppression
    """

    detections: Detections
    by_class: Detections
    candidates: Candidates


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

    Raises DataError as load_split and detect_all do, and if an image record lacks the key.
    """
    sound = read_sound_split(data, split)
    records, truth = records_of(sound), truth_of(sound, data.classes)
    groups = {} if by is None else group_images(truth, by)
    results: list[Result] = []
    for record, found in detect_all(engine, rule, records, options, progress):
        results += coco_results(record.image_id, found.detections)
    per_group = group_aps(truth, results, groups)
    return replace(measure(truth, results, data.classes), per_group=per_group)


def detect_all(
    engine: Engine,
    rule: InputRule,
    records: Sequence[Record],
    options: DetectOptions,
    progress: bool = True,
) -> Iterator[tuple[Record, Found]]:
    """What the model finds in the image of each record.

    Raises DataError as read_pixels does.
    """
    tap, nms = _Tap(engine), ClassNms()
    detector, by_class = Detector(tap, nms, rule), Detector(_ByClass(tap, options.score), nms, rule)
    for record in tqdm(
        records, disable=None if progress else True, unit="image", dynamic_ncols=True, leave=None
    ):
        prepared = detector.prepare(read_pixels(record, rule.background))
        (detections,), _ = detector.detect_prepared([prepared], options)
        (alternative,), _ = by_class.detect_prepared([prepared], options)
        candidates = in_image(Candidates(*(array[0] for array in tap.last)), prepared.geometry)
        wanted = candidates.scores > np.float32(options.score)
        if options.classes is not None:
            wanted &= np.isin(candidates.labels, sorted(options.classes))
        chosen = Candidates(*(array[wanted] for array in candidates))
        yield record, Found(detections, alternative, chosen)


class _Tap:
    """An engine whose last result can be looked at."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.last: Candidates

    def run(self, batch: Pixels) -> Candidates:
        self.last = self._engine.run(batch)
        return self.last


class _ByClass:
    """Gives the last result of another engine again, with the class score as ranking score.

    Candidates whose own ranking score is below the threshold stay out: both ways of ranking choose
    from the same ones.
    """

    def __init__(self, tap: _Tap, score: float) -> None:
        self._tap, self._score = tap, np.float32(score)

    def run(self, batch: Pixels) -> Candidates:
        last = self._tap.last
        kept = last.scores > self._score
        return last._replace(scores=np.where(kept, last.cls_scores, np.float32(0.0)))
