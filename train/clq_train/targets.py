"""What can be evaluated: a checkpoint in torch, or a bundle in the service's engine."""

import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from clq_serve.bundle import MANIFEST_FILE, Bundle, load_bundle
from clq_serve.detector import DetectOptions, Engine
from clq_serve.devices import DeviceKind, GpuOptions, parse_devices
from clq_serve.engine import OnnxEngine
from clq_serve.golden import compare_golden, read_golden
from clq_serve.preprocess import InputRule
from clq_serve.tensorrt_engine import PlanEngine, open_plan
from clq_train.checkpoint import CONFIG, list_checkpoints, load_model
from clq_train.config import EvalConfig
from clq_train.errors import ConfigError
from clq_train.evaluate import TorchEngine


@dataclass(frozen=True, slots=True)
class Target:
    """A model that is ready to run.

    name     e.g. "webui-nano/1"
    runtime  what it is and what computes it, for a person
    alpha    of the ranking score
    options  its suppression, with the low score threshold and 100 detections of COCO
    """

    name: str
    runtime: str
    engine: Engine
    rule: InputRule
    classes: list[str]
    alpha: float
    options: DetectOptions


def is_bundle(target: Path) -> bool:
    """Whether the folder is a bundle, not a checkpoint."""
    return (target / MANIFEST_FILE).is_file()


def open_target(target: Path, device: str | None = None) -> Target:
    """The model of a checkpoint folder or of a bundle.

    device  as `clq-serve` takes it for a bundle, a torch device for a checkpoint; None is the CPU,
            or the device of the checkpoint's configuration

    A bundle must reproduce its golden examples, as in the service.

    Raises BundleError or CheckpointError for a broken target, ConfigError for an unknown device or
    for what is neither, SettingsError for a device that can't be used.
    """
    if is_bundle(target):
        return _open_bundle(load_bundle(target), device or "cpu")
    if not target.exists():
        raise ConfigError(f"{target}: there is no such file or folder")
    if not (target / CONFIG).is_file():
        inside = [str(path) for path in list_checkpoints(target)]
        raise ConfigError(
            f"{target}: neither a bundle (it has no {MANIFEST_FILE}) nor a checkpoint (no {CONFIG})"
            + (f"; its checkpoints: {', '.join(inside)}" if inside else "")
        )
    model, config = load_model(target)
    try:
        engine = TorchEngine(model, device or config.run.device)
    except ConfigError as error:
        if device is not None:
            raise
        raise ConfigError(
            f"{target}: it was trained on {config.run.device}: {error}; "
            "--device cpu measures it here"
        ) from error
    return Target(
        name=str(target),
        runtime=f"torch {torch.__version__} on {device or config.run.device}",
        engine=engine,
        rule=config.input_rule,
        classes=config.data.classes,
        alpha=config.model.head.alpha,
        options=DetectOptions(config.eval.score, config.eval.iou, config.eval.max),
    )


def _open_bundle(bundle: Bundle, device: str) -> Target:
    try:
        places = parse_devices(device)
    except ValueError as error:
        raise ConfigError(f"--device: {error}") from error
    if len(places) > 1:
        raise ConfigError(f"--device: {device!r} are several; accepted: one device")
    (place,) = places
    manifest = bundle.manifest
    if place.kind is DeviceKind.PLAN:
        engine: OnnxEngine | PlanEngine = open_plan(bundle, place, GpuOptions())
        runtime = f"TensorRT plan on {place}"
    else:
        engine = OnnxEngine(bundle, os.cpu_count() or 1, device=place)
        runtime = f"ONNX Runtime {onnxruntime.__version__} on {place}"
    compare_golden(engine, read_golden(bundle), bundle, engine.tolerance)
    return Target(
        name=f"{manifest.name}/{manifest.version}",
        runtime=f"{manifest.precision}, {bundle.digest[:19]}, {runtime}",
        engine=engine,
        rule=manifest.input.rule,
        classes=manifest.class_names,
        alpha=manifest.alpha,
        options=DetectOptions(EvalConfig().score, manifest.thresholds.iou, EvalConfig().max),
    )
