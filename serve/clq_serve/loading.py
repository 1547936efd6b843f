"""From a bundle to a model that has proved itself: loaded, checked and warm."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clq_serve.bundle import Bundle, builtin_bundle_path, load_bundle
from clq_serve.detector import DetectOptions, Detector
from clq_serve.engine import PROVIDER, OnnxEngine, check_golden, read_golden
from clq_serve.errors import EngineError
from clq_serve.nms import ClassNms
from clq_serve.settings import Settings

log = logging.getLogger(__name__)


@dataclass(slots=True, weakref_slot=True, eq=False)
class LoadedModel:
    """A model ready for requests.

    lanes            one detector for each lane of the scheduler, with an engine of its own
    wide             a detector whose engine uses all cores, for an image that is alone in the
                     service; None where lanes are not one core each
    provider         the ONNX Runtime provider in use
    golden_examples  how many golden examples it reproduced on this machine
    fresh            makes a checked detector for a lane (False) or for `wide` (True); None = it
                     cannot be made again
    """

    bundle: Bundle
    lanes: tuple[Detector, ...]
    wide: Detector | None
    provider: str
    golden_examples: int
    fresh: Callable[[bool], Detector] | None = None

    def rebuild_lane(self, index: int | None) -> None:
        """Replaces the detector of one lane (None: `wide`) by a fresh one.

        Raises BundleError if the fresh one does not prove itself, EngineError if there is no way to
        make one.
        """
        if self.fresh is None:
            raise EngineError(f"{self.name}/{self.version}: its engine cannot be made again")
        detector = self.fresh(index is None)
        if index is None:
            self.wide = detector
        else:
            self.lanes = (*self.lanes[:index], detector, *self.lanes[index + 1 :])

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        return self.bundle.manifest.version


def load_model(settings: Settings, path: Path | None = None) -> LoadedModel:
    """The bundle in `path` (None: the built-in one), ready to answer.  Raises BundleError."""
    bundle = load_bundle(builtin_bundle_path() if path is None else path)
    nms = ClassNms()
    golden = read_golden(bundle)
    lanes = settings.engine_lanes
    threads_each = max(1, settings.threads // lanes)
    has_wide = threads_each < settings.threads

    def fresh(wide: bool) -> Detector:
        engine = OnnxEngine(bundle, settings.threads if wide else threads_each)
        check_golden(engine, bundle)
        detector = Detector(engine, nms, bundle.manifest.input.rule)
        options = DetectOptions.from_thresholds(bundle.manifest.thresholds)
        detector.detect([golden[0][0][0]], options)  # warms the rest
        return detector

    log.debug("%s: %d golden examples reproduced", bundle.path, len(golden))
    return LoadedModel(
        bundle,
        tuple(fresh(False) for _ in range(lanes)),
        fresh(True) if has_wide else None,
        PROVIDER,
        len(golden),
        fresh,
    )
