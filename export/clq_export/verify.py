"""Whether a bundle gives in a runtime what it gives in the reference: `clq-export verify`.

The reference for the golden images is golden.npz, which torch computed; for all others it is ONNX
Runtime on the CPU, which the exporter held against torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clq_export.errors import ExportError, ParityError
from clq_export.matching import Deltas, image_deltas
from clq_export.runtimes import Opened
from clq_serve.bundle import (
    MANIFEST_FILE,
    Bundle,
    ParityEntry,
    read_manifest,
    write_manifest,
)
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Detector, Engine
from clq_serve.errors import ImageError
from clq_serve.golden import Tolerance, read_golden
from clq_serve.nms import ClassNms
from clq_serve.preprocess import ImageLimits, Pixels, decode_image
from clq_train.coco import load_split
from clq_train.config import Config
from clq_train.measure import Evaluation, measure
from clq_train.results import coco_results
from clq_train.truth import ground_truth

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(slots=True)
class Report:
    """The largest differences over all images, each with the image that shows it."""

    images: int = 0
    compared: int = 0
    score: float = 0.0
    box_px: float = 0.0
    labels_changed: int = 0
    shown_by: dict[str, str] = field(default_factory=dict)  # score, box_px, labels -> image

    def add(self, name: str, deltas: Deltas) -> None:
        """Takes the differences of one image in."""
        self.images += 1
        self.compared += deltas.compared
        if deltas.score >= self.score:
            self.score, self.shown_by["score"] = deltas.score, name
        if deltas.box_px >= self.box_px:
            self.box_px, self.shown_by["box_px"] = deltas.box_px, name
        if deltas.labels_changed and "labels" not in self.shown_by:
            self.shown_by["labels"] = name
        self.labels_changed += deltas.labels_changed

    def check(self, accepted: Tolerance) -> None:
        """Raises ParityError beyond what is accepted, or if nothing was there to compare."""
        if self.compared == 0:
            raise ParityError("no candidate is strong enough to be compared; give other images")
        found = []
        if self.score > accepted.score:
            found.append(f"scores by {self.score:.2g} in {self.shown_by['score']}")
        if self.box_px > accepted.box_px:
            found.append(f"boxes by {self.box_px:.2g} px in {self.shown_by['box_px']}")
        if self.labels_changed:
            where = self.shown_by["labels"]
            found.append(f"{self.labels_changed} candidates in class or place, first in {where}")
        if found:
            raise ParityError(
                f"differs from the reference: {'; '.join(found)}; accepted: {accepted.score:g} of "
                f"score, {accepted.box_px:g} px, no class"
            )


class _Comparing:
    """The runtime's engine, whose every result is held against the reference's."""

    def __init__(self, opened: Opened, reference: Engine, report: Report) -> None:
        self.name = ""  # of the image that comes next
        self.expected: Candidates | None = None  # of that image, by the reference
        self._opened, self._reference, self._report = opened, reference, report

    def run(self, batch: Pixels) -> Candidates:
        found = self._opened.engine.run(batch)
        self.expected = self._reference.run(batch)
        self._report.add(self.name, _first(found, self.expected, self._opened.accepted))
        return found


def compare_golden_images(opened: Opened, bundle: Bundle, report: Report) -> None:
    """Holds the runtime against golden.npz."""
    for index, (images, expected) in enumerate(read_golden(bundle)):
        deltas = _first(opened.engine.run(images), expected, opened.accepted)
        report.add(f"golden image {index}", deltas)


def compare_images(
    opened: Opened, reference: Engine, bundle: Bundle, folder: Path, report: Report
) -> None:
    """Holds the runtime against the reference on every image file of a folder.

    Raises ExportError for a folder without images, or an image that can't be read.
    """
    comparing = _Comparing(opened, reference, report)
    detector = Detector(comparing, ClassNms(), bundle.manifest.input.rule)
    for path in _progress(image_files(folder)):
        comparing.name = path.name
        comparing.run(detector.prepare(_read(path, bundle)).pixels[None])


def compare_split(
    opened: Opened, reference: Engine, bundle: Bundle, config: Config, split: str, report: Report
) -> tuple[Evaluation, Evaluation]:
    """Holds the runtime against the reference on a split; the COCO figures of both."""
    rule = bundle.manifest.input.rule
    comparing = _Comparing(opened, reference, report)
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    results: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for record in _progress(load_split(config.data, split)):
        comparing.name = record.path.name
        prepared = Detector(comparing, ClassNms(), rule).prepare(_read(record.path, bundle))
        for engine, found in ((comparing, results[0]), (_Known(comparing), results[1])):
            ((detections,), _) = Detector(engine, ClassNms(), rule).detect_prepared(
                [prepared], options
            )
            found += coco_results(record.image_id, detections)
    truth = ground_truth(config.data, split)
    ours, theirs = (measure(truth, found, config.data.classes) for found in results)
    return ours, theirs


class _Known:
    """Gives what the reference gave just now, so that it runs once for each image."""

    def __init__(self, comparing: _Comparing) -> None:
        self._comparing = comparing

    def run(self, batch: Pixels) -> Candidates:
        assert self._comparing.expected is not None
        return self._comparing.expected


def record(bundle: Bundle, opened: Opened, report: Report) -> ParityEntry:
    """Writes the result into the manifest, in place of an older one of the same runtime.

    Raises ExportError, and leaves the manifest as it was, if the bundle was changed meanwhile or
    cannot be written.
    """
    entry = ParityEntry(
        runtime=opened.runtime,
        version=opened.version,
        device=opened.device,
        dcn=opened.dcn,
        images=report.images,
        worst_score=float(f"{report.score:.3g}"),
        worst_box_px=float(f"{report.box_px:.3g}"),
        labels_changed=report.labels_changed,
        date=datetime.now(UTC).date().isoformat(),
    )
    path = bundle.path / MANIFEST_FILE
    now = read_manifest(path)
    if now.files != bundle.manifest.files:
        raise ExportError(f"{path}: the bundle was changed while it was verified; do it again")
    same = (entry.runtime, entry.version, entry.device, entry.dcn)
    kept = [e for e in now.parity if (e.runtime, e.version, e.device, e.dcn) != same]
    try:
        write_manifest(now.model_copy(update={"parity": (*kept, entry)}), bundle.path)
    except OSError as err:
        raise ExportError(f"{path}: the result cannot be written: {err}") from err
    return entry


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, by name.  Raises ExportError if there are none."""
    if not folder.is_dir():
        raise ExportError(f"{folder}: there is no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ExportError(f"{folder}: has no image; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def _read(path: Path, bundle: Bundle) -> Pixels:
    try:
        background = bundle.manifest.input.background
        return decode_image(path.read_bytes(), ImageLimits(), background).pixels
    except OSError as err:
        raise ExportError(f"{path}: {err.strerror}") from err
    except ImageError as err:
        raise ExportError(f"{path}: {err}") from err


def _first(found: Candidates, expected: Candidates, accepted: Tolerance) -> Deltas:
    """The differences of a batch of one image."""
    one, other = (Candidates(*(array[0] for array in side)) for side in (found, expected))
    # A candidate near the cut may be on one side only if its score differs by what is accepted.
    return image_deltas(one, other, margin=max(1e-3, 2 * accepted.score))


def _progress(items: Sequence[Any]) -> Iterator[Any]:
    return iter(tqdm(items, disable=None, unit="image", dynamic_ncols=True, leave=False))
