"""The steps of `clq-train eval`: what can be wrong is found before the long work."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clq_serve.detector import Detections, DetectOptions
from clq_train.assess import Assessment, Assessor
from clq_train.checkpoint import CONFIG
from clq_train.coco import Record, read_annotations, read_sound_split, records_of, split_paths
from clq_train.config import Config, DataConfig, load_config
from clq_train.errors import ConfigError, DataError
from clq_train.eval_data import Categories, eval_data
from clq_train.evaluate import detect_all
from clq_train.option_pairs import option_pairs
from clq_train.report.page import report_page
from clq_train.report.pictures import worst_pictures
from clq_train.results import category_ids, load_results, save_results
from clq_train.targets import Target, is_bundle, open_target
from clq_train.truth import Tree, group_images, images_where, only_images, truth_of
from clq_train.whole_file import write_text


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """The command's arguments; None is what was not given."""

    target: Path
    overrides: Sequence[str]
    data: Path | None
    images: Path | None
    merge: Sequence[str]
    drop: Sequence[str]
    drop_rest: bool
    config: Path | None
    split: str
    by: str | None
    where: Sequence[str]
    score: float | None
    iou: float | None
    max: int | None
    device: str | None
    out: Path | None
    pictures: int
    save_results: Path | None


@dataclass(frozen=True, slots=True)
class EvalJob:
    """All that the work needs.

    target   None where detections are read from a file, which are `given` then by image
    labels   of each category id
    groups   image ids by name
    where    the values asked for of each key of the image records; empty for all images
    notes    on the data, for a person
    """

    target: Target | None
    given: dict[int, Detections] | None
    name: str
    options: DetectOptions
    data: DataConfig
    annotations: Path
    labels: dict[int, int | None]
    records: list[Record]
    truth: Tree
    groups: dict[str, set[int]]
    where: dict[str, list[str]]
    notes: list[str]

    def heading(self) -> list[str]:
        """What is measured on what; the first line is the model's name."""
        objects = sum(not entry["iscrowd"] for entry in self.truth["annotations"])
        classes = len(self.data.classes) - len(self.data.absent)
        asked = self.options
        lines = [self.name]
        if self.target is not None:
            lines.append(
                f"{self.target.runtime}; score above {asked.score:g}, suppression at IoU "
                f"{asked.iou:g}, at most {asked.max} detections an image"
            )
        lines.append(
            f"{self.annotations}: {len(self.records):,} images, {objects:,} objects, "
            f"{classes} classes"
        )
        return lines + self.notes


def prepare(request: EvalRequest) -> EvalJob:
    """Opens the model and the data.

    Raises ConfigError, DataError, CheckpointError or BundleError for whatever is wrong with them.
    """
    # 1. where the output goes
    for file in (request.out and request.out / "results.json", request.save_results):
        if file is not None:
            _check_writable(file)
    # 2. the configuration, if there is one, and the model
    settings = _settings(request)
    of_file = request.target.is_file()
    if of_file and (request.score, request.iou, request.max, request.device) != (None,) * 4:
        raise ConfigError(
            f"{request.target}: is a file of detections: --score, --iou, --max and --device are "
            "for a model"
        )
    target = None if of_file else open_target(request.target, request.device)
    classes = None if settings is None else settings.data.classes
    if target is not None:
        if classes is not None and classes != target.classes:
            raise ConfigError(
                f"data.classes: {classes}; {request.target} was trained on {target.classes}"
            )
        classes = target.classes
    # 3. the data
    data, notes = _data(request, settings, classes)
    sound = read_sound_split(data, request.split)
    truth = truth_of(sound, data.classes)
    records = records_of(sound)
    given = None
    if target is None:
        given = load_results(request.target, [r.image_id for r in records], sound.labels)
    where = _where(request)
    if where:
        kept = images_where(truth, where)
        if not kept:
            raise DataError(f"--where: no image has all of {', '.join(request.where)}")
        truth, records = only_images(truth, kept), [r for r in records if r.image_id in kept]
        given = None if given is None else {i: own for i, own in given.items() if i in kept}
        asked = "; ".join(f"{key} {', '.join(values)}" for key, values in where.items())
        notes = [*notes, f"only images of {asked}"]
    return EvalJob(
        target=target,
        given=given,
        name=str(request.target) if target is None else target.name,
        options=_options(request, settings, target, data),
        data=data,
        annotations=split_paths(data, request.split)[0],
        labels=sound.labels,
        records=records,
        truth=truth,
        groups={} if request.by is None else group_images(truth, request.by),
        where=where,
        notes=notes,
    )


def run(job: EvalJob) -> Assessment:
    """The long work: every image through the model."""
    classes, options = job.data.classes, job.options
    assessor = Assessor(job.truth, classes, job.groups, options.iou)
    if job.target is None:
        for image_id, found in (job.given or {}).items():
            assessor.add_detections(image_id, found)
    else:
        engine, rule = job.target.engine, job.target.rule
        for record, seen in detect_all(engine, rule, job.records, options):
            assessor.add(record.image_id, seen)
    return assessor.result()


def as_dict(job: EvalJob, found: Assessment) -> dict[str, Any]:
    """The whole result as JSON takes it."""
    data = job.data
    return {
        "model": job.name,
        "runtime": None if job.target is None else job.target.runtime,
        "alpha": None if job.target is None else job.target.alpha,
        "annotations": str(job.annotations),
        "merge": data.merge,
        "drop": data.drop,
        "absent": data.absent,
        "where": job.where,
        "options": {
            "score": job.options.score,
            "iou": job.options.iou,
            "max": job.options.max,
        },
        **found.to_dict(),
    }


def write_outputs(job: EvalJob, request: EvalRequest, found: Assessment) -> list[Path]:
    """Writes what --save-results and --out ask for; each file whole or as it was."""
    written = []
    if request.save_results is not None:
        categories = read_annotations(job.annotations)["categories"]
        ids = category_ids(job.data.classes, categories, job.labels)
        save_results(request.save_results, found.results, ids)
        written.append(request.save_results)
    if request.out is not None:
        figures = json.dumps(as_dict(job, found), indent=1)
        shown = worst_pictures(found, job.records, request.pictures, job.data.classes)
        page = report_page(found, job.heading(), request.by, shown)
        for name, text in (("results.json", figures + "\n"), ("report.html", page)):
            write_text(request.out / name, text)
            written.append(request.out / name)
    return written


def _settings(request: EvalRequest) -> Config | None:
    """The configuration of --config, or of the checkpoint."""
    for override in request.overrides:
        if not override.startswith(("data.", "eval.")):
            raise ConfigError(
                f"override {override!r}: changes nothing here, the model brings all else; "
                "accepted: keys of data and eval"
            )
    path = request.config
    if path is None and not is_bundle(request.target):
        own = request.target / CONFIG
        path = own if own.is_file() else None
    if path is not None:
        return load_config(path, list(request.overrides))
    if request.overrides:
        raise ConfigError(f"override {request.overrides[0]!r}: there is none without --config")
    return None


def _data(
    request: EvalRequest, settings: Config | None, classes: list[str] | None
) -> tuple[DataConfig, list[str]]:
    rules = Categories(
        option_pairs("--merge", request.merge, "CATEGORY=CLASS"), request.drop, request.drop_rest
    )
    if request.data is not None:
        base = None if settings is None else settings.data
        return eval_data(request.data, request.images, request.split, classes, rules, base)
    if request.images is not None or rules.merge or rules.drop or rules.drop_rest:
        raise ConfigError("--images, --merge, --drop and --drop-rest go with --data")
    if settings is None:
        raise ConfigError(
            f"{request.target}: names no data; give --data FILE_OR_FOLDER, or --config FILE"
        )
    return settings.data, []


def _where(request: EvalRequest) -> dict[str, list[str]]:
    asked = option_pairs("--where", request.where, "KEY=VALUE,VALUE")
    return {key: values.split(",") for key, values in asked.items()}


def _options(
    request: EvalRequest, settings: Config | None, target: Target | None, data: DataConfig
) -> DetectOptions:
    """Of the command line, else of --config, else of the model."""
    if settings is not None:
        thresholds = settings.eval
        own = DetectOptions(thresholds.score, thresholds.iou, thresholds.max)
    elif target is not None:
        own = target.options
    else:
        own = DetectOptions(0.0, 1.0, 100)
    measured = [label for label, name in enumerate(data.classes) if name not in data.absent]
    return DetectOptions(
        score=own.score if request.score is None else request.score,
        iou=own.iou if request.iou is None else request.iou,
        max=own.max if request.max is None else request.max,
        classes=frozenset(measured) if data.absent else None,
    )


def _check_writable(file: Path) -> None:
    """Makes the file's folder, and finds out now whether a file can be written there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{file.parent}: can't write there: {error.strerror}") from error
