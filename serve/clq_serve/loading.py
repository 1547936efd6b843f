"""From settings to a model that has proved itself: loaded, checked and warm."""

import logging
from dataclasses import dataclass

from clq_serve.bundle import Bundle, builtin_bundle_path, load_bundle
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine, check_golden, read_golden
from clq_serve.nms import ClassNms
from clq_serve.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for requests.

    provider         the ONNX Runtime provider in use
    golden_examples  how many golden examples it reproduced on this machine
    """

    bundle: Bundle
    detector: Detector
    provider: str
    golden_examples: int


def load_model(settings: Settings) -> LoadedModel:
    """The model that `settings` name, ready to answer.  Raises BundleError."""
    path = builtin_bundle_path() if settings.bundle is None else settings.bundle
    bundle = load_bundle(path)
    engine = OnnxEngine(bundle, settings.threads)
    examples = check_golden(engine, bundle)
    detector = Detector(engine, ClassNms(), bundle.manifest.input.rule)
    options = DetectOptions.from_thresholds(bundle.manifest.thresholds)
    detector.detect([read_golden(bundle)[0][0][0]], options)  # warms the rest
    log.debug("%s: %d golden examples reproduced", path, examples)
    return LoadedModel(bundle, detector, engine.provider, examples)
