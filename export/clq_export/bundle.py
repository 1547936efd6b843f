"""From a checkpoint to a bundle NAME/VERSION/: written beside, checked, renamed."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clq_export.beside import new_bundle, next_version
from clq_export.choices import DcnForm, Weights
from clq_export.errors import ExportError
from clq_export.graph import INPUT, OPSET, write_graph
from clq_export.parity import Parity, check_parity
from clq_serve.bundle import (
    GOLDEN_FILE,
    MODEL_FILE,
    Bundle,
    ClassEntry,
    InputSpec,
    Manifest,
    Metric,
    OutputSpec,
    PadRule,
    ResizeRule,
    Thresholds,
    describe_file,
    load_bundle,
    write_manifest,
)
from clq_serve.candidates import Candidates
from clq_serve.detector import DetectOptions, Engine
from clq_serve.engine import OnnxEngine
from clq_serve.errors import ImageError
from clq_serve.golden import check_golden
from clq_serve.preprocess import ImageLimits, Pixels, decode_image, prepare
from clq_train.checkpoint import load_model
from clq_train.coco import category_ids, load_split, split_paths
from clq_train.config import Config
from clq_train.evaluate import TorchEngine, evaluate
from clq_train.measure import Evaluation


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export.

    out         folder that gets NAME/VERSION/
    version     None takes the next whole number that is free
    golden      image files for golden.npz; none takes the first two of the split `val`
    score       the service's default score threshold; None takes the configuration's
    max         the service's default number of detections; None takes the configuration's
    eval_split  split to measure the bundle on, None for no figures in the manifest
    command     how to measure the same again, for the manifest
    dcn         form of the deformable convolution, see dcn_forms
    weights     what kernels are stored in, see stored; with float16 the torch model that the bundle
                is held against has the same rounded kernels
    """

    checkpoint: Path
    config: Config
    out: Path
    version: int | None
    golden: Sequence[Path]
    score: float | None
    max: int | None
    trained_on: str
    licence: str
    eval_split: str | None
    command: str
    threads: int
    dcn: DcnForm = "standard"
    weights: Weights = "float32"


def export_bundle(request: ExportRequest) -> tuple[Path, Parity, Evaluation | None]:
    """The folder of the new bundle, how far it is from torch, and its measured precision.

    Raises ParityError, and leaves nothing behind, if the exported model is not the torch model;
    ExportError for a folder that exists or a golden image that can't be read.
    """
    model, _ = load_model(request.checkpoint)
    name = request.config.name
    version = request.version or next_version(request.out / name)
    golden = golden_inputs(request)
    reference = TorchEngine(model)
    with new_bundle(request.out, name, version) as folder:
        write_graph(model, folder / MODEL_FILE, request.dcn, request.weights)
        write_golden(folder / GOLDEN_FILE, golden, reference)
        manifest = make_manifest(request, version, folder)
        write_manifest(manifest, folder)
        bundle = load_bundle(folder)
        engine = OnnxEngine(bundle, request.threads)
        parity = check_parity(engine, reference, golden, request.config.model.strides[-1])
        check_golden(engine, bundle)
        measured = None
        if request.eval_split is not None:
            measured = measure(engine, bundle, request.config, request.eval_split)
            metric = as_metric(measured, request.config.name, request.eval_split, request.command)
            write_manifest(manifest.model_copy(update={"metrics": (metric,)}), folder)
            load_bundle(folder)
    return request.out / name / str(version), parity, measured


def measure(engine: Engine, bundle: Bundle, config: Config, split: str) -> Evaluation:
    """The COCO figures of the bundle's engine on a split of the configuration's data."""
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    return evaluate(engine, bundle.manifest.input.rule, config.data, split, options)


def golden_inputs(request: ExportRequest) -> list[Pixels]:
    """The golden images, prepared as the service prepares them."""
    paths = list(request.golden)
    if not paths:
        paths = [record.path for record in load_split(request.config.data, "val")[:2]]
    rule = request.config.input_rule
    inputs = []
    for path in paths:
        try:
            pixels = decode_image(path.read_bytes(), ImageLimits(), rule.background).pixels
        except OSError as error:
            raise ExportError(f"{path}: {error.strerror}") from error
        except ImageError as error:
            raise ExportError(f"{path}: {error}") from error
        inputs.append(prepare(pixels, rule)[0])
    return inputs


def write_golden(path: Path, inputs: Sequence[Pixels], reference: Engine) -> None:
    """golden.npz: each input and what the reference gives for it."""
    arrays: dict[str, np.ndarray] = {}
    for i, pixels in enumerate(inputs):
        arrays[f"images_{i}"] = pixels[None]
        expected = reference.run(pixels[None])
        arrays |= {f"{k}_{i}": v for k, v in zip(Candidates._fields, expected, strict=True)}
    np.savez_compressed(path, **arrays)


def make_manifest(request: ExportRequest, version: int, folder: Path) -> Manifest:
    """The manifest of the files in the folder, without figures."""
    config = request.config
    source, _ = split_paths(config.data, "train")
    ids = category_ids(config.data, source)
    return Manifest(
        format="clq-bundle",
        format_version=1,
        name=config.name,
        version=version,
        classes=tuple(
            ClassEntry(name=name, category_id=category)
            for name, category in zip(config.data.classes, ids, strict=True)
        ),
        input=InputSpec(
            name=INPUT,
            dtype="uint8",
            layout="NHWC",
            color="RGB",
            resize=ResizeRule(
                shorter_px=config.input.shorter_px,
                longer_px=config.input.longer_px,
                upscale=config.input.upscale,
                filter="bilinear",
                largest_scale=config.input.largest_scale,
            ),
            pad=PadRule(multiple=config.model.strides[-1], value=config.input.pad_value),
            background=config.input.background,
        ),
        outputs=OutputSpec(
            **{name: name for name in Candidates._fields}, count=config.model.candidates
        ),
        thresholds=Thresholds(
            score=config.eval.score if request.score is None else request.score,
            iou=config.eval.iou,
            max=request.max or config.eval.max,
        ),
        alpha=config.model.head.alpha,
        files={name: describe_file(folder / name) for name in (MODEL_FILE, GOLDEN_FILE)},
        trained_on=request.trained_on,
        metrics=(),
        licence=request.licence,
        created={
            "checkpoint": request.checkpoint.name,
            "opset": str(OPSET),
            "dcn": request.dcn,
            "weights": request.weights,
            "config": recorded_config(config),
            **{p: importlib.metadata.version(p) for p in ("clq-export", "torch", "onnx")},
        },
    )


def recorded_config(config: Config) -> str:
    """The resolved configuration as JSON, without places on this machine."""
    tree = config.model_dump(mode="json")
    tree["data"]["root"] = "DATA"
    if config.init is not None:
        tree["init"] = config.init.name
    return json.dumps(tree)


def as_metric(measured: Evaluation, data: str, split: str, command: str) -> Metric:
    """The figures as the manifest keeps them."""
    return Metric(
        data=f"{data}: {split}",
        images=measured.images,
        AP=round(measured.ap, 4),
        AP50=round(measured.ap50, 4),
        AP75=round(measured.ap75, 4),
        command=command,
    )
