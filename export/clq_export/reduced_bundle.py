"""From a float32 bundle to its sibling of 16 or 8 bits, kept only if its precision is near."""

import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clq_export.beside import new_bundle, next_version
from clq_export.bundle import as_metric, measure, write_golden
from clq_export.choices import Reduced, Runtime
from clq_export.errors import ExportError, PrecisionError
from clq_export.half import halve
from clq_export.int8 import quantise
from clq_serve.bundle import (
    GOLDEN_FILE,
    MODEL_FILE,
    MODEL_NAME,
    Bundle,
    FileEntry,
    Manifest,
    describe_file,
    load_bundle,
    write_manifest,
)
from clq_serve.engine import OnnxEngine
from clq_serve.golden import check_golden, read_golden
from clq_serve.preprocess import ImageLimits, Pixels, decode_image, prepare
from clq_train.coco import load_split
from clq_train.config import Config
from clq_train.measure import Evaluation


@dataclass(frozen=True, slots=True)
class ReducedRequest:
    """What to make.

    bundle        folder NAME/VERSION of a float32 bundle
    precision     float16 or int8
    config        names the data
    split         split on which both bundles are measured
    out           folder that gets NAME/VERSION/
    version       None takes the next whole number that is free, there and beside `bundle`
    max_ap_drop   in AP points of 0 to 100; a larger loss is refused
    command       how to measure the same again, for the manifest
    runtime       whose 8-bit form: onnxruntime (unsigned activations) or tensorrt (signed)
    calibration   8 bits: this many images are taken evenly from the split train
    name          of the new bundle; None takes that of `bundle`
    """

    bundle: Path
    precision: Reduced
    config: Config
    split: str
    out: Path
    version: int | None
    max_ap_drop: float
    command: str
    threads: int
    runtime: Runtime = "onnxruntime"
    calibration: int = 32
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ReducedResult:
    """The new folder, the figures before and after, and how many convolutions are in few bits."""

    folder: Path
    before: Evaluation
    after: Evaluation
    convolutions: int


def export_reduced(request: ReducedRequest) -> ReducedResult:
    """The bundle of fewer bits and how it compares.

    Its golden outputs are its own, computed here by ONNX Runtime: a machine whose kernels compute
    something else refuses to serve it.

    Raises PrecisionError if it loses more than max_ap_drop, ExportError for a bundle that is in
    lower precision already and for a name that no bundle can have; nothing is left behind then.
    """
    source = load_bundle(request.bundle)
    manifest = source.manifest
    if manifest.precision != "float32":
        raise ExportError(f"{request.bundle}: is in {manifest.precision}; accepted: float32")
    name = manifest.name if request.name is None else request.name
    if not re.fullmatch(MODEL_NAME, name):
        raise ExportError(f"--name is {name!r}; accepted: a-z and 0-9, after the first also . _ -")
    version = request.version or max(
        next_version(request.out / name), next_version(source.path.parent.with_name(name))
    )
    before = measure(OnnxEngine(source, request.threads), source, request.config, request.split)
    with new_bundle(request.out, name, version) as folder:
        if request.precision == "int8":
            images = calibration_images(source, request.config, request.calibration)
            count = quantise(source.model_path, folder / MODEL_FILE, images, request.runtime)
        else:
            count = halve(source.model_path, folder / MODEL_FILE)
        inputs = [images[0] for images, _ in read_golden(source)]
        model = {MODEL_FILE: describe_file(folder / MODEL_FILE)}
        draft = _changed(request, source, name, version, model)
        # The engine reads the graph only, so it can make the golden outputs, which are listed next.
        engine = OnnxEngine(Bundle(draft, folder, source.digest), request.threads)
        write_golden(folder / GOLDEN_FILE, inputs, engine)
        changed = draft.model_copy(
            update={"files": draft.files | {GOLDEN_FILE: describe_file(folder / GOLDEN_FILE)}}
        )
        write_manifest(changed, folder)
        check_golden(engine, load_bundle(folder))
        after = measure(engine, source, request.config, request.split)
        drop = 100 * (before.ap - after.ap)
        if drop > request.max_ap_drop:
            raise PrecisionError(
                f"{request.split}: AP falls from {100 * before.ap:.2f} to {100 * after.ap:.2f}, by "
                f"{drop:.2f} points; accepted: {request.max_ap_drop:g}"
            )
        metric = as_metric(after, request.config.name, request.split, request.command)
        write_manifest(changed.model_copy(update={"metrics": (metric,)}), folder)
        load_bundle(folder)
    return ReducedResult(request.out / name / str(version), before, after, count)


def calibration_images(bundle: Bundle, config: Config, count: int) -> Iterator[Pixels]:
    """`count` prepared images, evenly spread over the split train; fewer if it has fewer."""
    records = load_split(config.data, "train")
    step = max(1, len(records) // count)
    rule = bundle.manifest.input.rule
    for record in records[::step][:count]:
        image = decode_image(record.path.read_bytes(), ImageLimits(), rule.background)
        yield prepare(image.pixels, rule)[0]


def _changed(
    request: ReducedRequest, source: Bundle, name: str, version: int, files: dict[str, FileEntry]
) -> Manifest:
    """The manifest of the new bundle, without figures."""
    kept = {key: text for key, text in source.manifest.created.items() if key != "weights"}
    created = kept | {
        "precision": request.precision,
        "from": source.digest,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }
    if request.precision == "int8":
        created["precision"] = f"int8 for {request.runtime}"
        created["calibration"] = f"{request.calibration} images of the split train"
    update = {
        "name": name,
        "version": version,
        "files": source.manifest.files | files,
        "created": created,
        "metrics": (),
    }
    return source.manifest.model_copy(update=update)


def two_rows(result: ReducedResult, precision: Reduced, split: str) -> Sequence[str]:
    """The figures side by side, for a person."""
    rows = [f"{split:12s} {'AP':>6s} {'AP50':>6s} {'AP75':>6s}"]
    for name, found in (("float32", result.before), (precision, result.after)):
        figures = " ".join(f"{100 * v:6.2f}" for v in (found.ap, found.ap50, found.ap75))
        rows.append(f"{name:12s} {figures}")
    return rows
