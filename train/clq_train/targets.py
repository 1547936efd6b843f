"""What can be evaluated: a checkpoint in torch, or a bundle in the service's engine."""

import os
from pathlib import Path

from clq_serve.bundle import MANIFEST_FILE, load_bundle
from clq_serve.detector import DetectOptions, Engine
from clq_serve.engine import OnnxEngine
from clq_serve.preprocess import InputRule
from clq_train.checkpoint import load_model
from clq_train.config import Config
from clq_train.errors import ConfigError
from clq_train.evaluate import TorchEngine


def open_target(target: Path, config: Config) -> tuple[Engine, InputRule, DetectOptions]:
    """The engine, the input rule and the thresholds of a checkpoint folder or a bundle.

    config  names the device and the thresholds; its classes must be the target's

    Raises BundleError or CheckpointError for a broken target, ConfigError for other classes.
    """
    options = DetectOptions(config.eval.score, config.eval.iou, config.eval.max)
    if (target / MANIFEST_FILE).is_file():
        bundle = load_bundle(target)
        _check_classes(bundle.manifest.class_names, config.data.classes, target)
        return OnnxEngine(bundle, os.cpu_count() or 1), bundle.manifest.input.rule, options
    model, own = load_model(target)
    _check_classes(own.data.classes, config.data.classes, target)
    return TorchEngine(model, config.run.device), own.input_rule, options


def _check_classes(own: list[str], asked: list[str], target: Path) -> None:
    if own != asked:
        raise ConfigError(f"data.classes: {asked}; {target} was trained on {own}")
