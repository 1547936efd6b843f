"""From a bundle to a model that has proved itself: loaded, checked and warm."""

import logging
from dataclasses import dataclass
from pathlib import Path

from clq_serve.bundle import Bundle, builtin_bundle_path, load_bundle
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import OnnxEngine, check_golden, read_golden
from clq_serve.nms import ClassNms
from clq_serve.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class LoadedModel:
    """A model ready for requests.

    lanes            one detector for each lane of the scheduler, with an engine of its own
    wide             a detector whose engine uses all cores, for an image that is alone in the
                     service; None where lanes are not one core each
    provider         the ONNX Runtime provider in use
    golden_examples  how many golden examples it reproduced on this machine
    """

    bundle: Bundle
    lanes: tuple[Detector, ...]
    wide: Detector | None
    provider: str
    golden_examples: int

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        return self.bundle.manifest.version


def load_model(settings: Settings, path: Path | None = None) -> LoadedModel:
    """The bundle in `path` (None: the built-in one), ready to answer.  Raises BundleError."""
    bundle = load_bundle(builtin_bundle_path() if path is None else path)
    engine = OnnxEngine(bundle, settings.threads)
    examples = check_golden(engine, bundle)
    detector = Detector(engine, ClassNms(), bundle.manifest.input.rule)
    options = DetectOptions.from_thresholds(bundle.manifest.thresholds)
    detector.detect([read_golden(bundle)[0][0][0]], options)  # warms the rest
    log.debug("%s: %d golden examples reproduced", bundle.path, examples)
    return LoadedModel(bundle, (detector,), None, engine.provider, examples)
