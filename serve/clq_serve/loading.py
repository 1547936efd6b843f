"""From a bundle to a model that has proved itself: loaded, checked and warm."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clq_serve.bundle import Bundle, builtin_bundle_path, load_bundle
from clq_serve.detector import Detector, Engine
from clq_serve.devices import DeviceKind, Place, placement
from clq_serve.engine import OnnxEngine
from clq_serve.errors import EngineError
from clq_serve.golden import Example, compare_golden, read_golden
from clq_serve.nms import ClassNms
from clq_serve.settings import Settings
from clq_serve.tensorrt_engine import PlanEngine, open_plan

log = logging.getLogger(__name__)

Shape = tuple[int, int]  # height and width of padded images
SEEN_SHAPES = 8  # the most frequent shapes of the model before are warmed up as well


@dataclass(slots=True, weakref_slot=True, eq=False)
class LoadedModel:
    """A model ready for requests.

    lanes            one detector for each lane of the scheduler; lanes of one CPU thread share an
                     engine, which runs in the thread that calls it
    wide             a detector whose engine uses all cores, for an image that is alone in the
                     service; None where lanes are not one core each
    provider         what runs it: an ONNX Runtime provider, or TensorRT
    golden_examples  how many golden examples each engine reproduced on this machine
    fresh            makes a checked detector for a lane, None: for `wide`; None: it cannot be made
    placement        devices, lanes and threads, for a person
    """

    bundle: Bundle
    lanes: tuple[Detector, ...]
    wide: Detector | None
    provider: str
    golden_examples: int
    fresh: Callable[[int | None], Detector] | None = None
    placement: str = ""

    @property
    def name(self) -> str:
        return self.bundle.manifest.name

    @property
    def version(self) -> int:
        return self.bundle.manifest.version

    def rebuild_lane(self, index: int | None) -> None:
        """Replaces the detector of one lane (None: `wide`) by a fresh one, with an engine of its
        own; a call that hangs in the old engine keeps that one alive and does not disturb.

        Raises BundleError if the fresh one does not prove itself, EngineError if there is no way to
        make one.
        """
        if self.fresh is None:
            raise EngineError(f"{self.name}/{self.version}: its engine cannot be made again")
        detector = self.fresh(index)
        if index is None:
            self.wide = detector
        else:
            self.lanes = (*self.lanes[:index], detector, *self.lanes[index + 1 :])

    def seen_shapes(self) -> list[Shape]:
        """The padded shapes that most images had, at most SEEN_SHAPES."""
        seen: Counter[Shape] = Counter()
        for detector in (*self.lanes, *([self.wide] if self.wide else [])):
            seen.update(detector.shapes.copy())
        return [shape for shape, _ in seen.most_common(SEEN_SHAPES)]


def load_model(
    settings: Settings, path: Path | None = None, shapes: Iterable[Shape] = ()
) -> LoadedModel:
    """The bundle in `path` (None: the built-in one), ready to answer.

    shapes  height and width of padded images that every engine runs once; those of the golden
            examples are always run

    Raises BundleError if the bundle must not be served, SettingsError if a device cannot be used.
    """
    bundle = load_bundle(builtin_bundle_path(settings.builtin) if path is None else path)
    maker = _EngineMaker(bundle, settings, read_golden(bundle), tuple(shapes))
    lanes, wide = settings.lane_places, settings.wide_place
    # Lanes of one CPU thread share an engine: ONNX Runtime runs it in the calling thread.
    distinct = [place for index, place in enumerate(lanes) if not _shares(place) or index == 0]
    places = distinct if wide is None else [*distinct, wide]
    with ThreadPoolExecutor(min(len(places), settings.threads)) as pool:
        engines = list(pool.map(maker.engine, places))
    nms = ClassNms()
    rule = bundle.manifest.input.rule

    def fresh(index: int | None) -> Detector:
        place = wide if index is None else lanes[index]
        if place is None:
            raise EngineError(f"{bundle.path}: there is no wide engine")
        return Detector(maker.engine(place), nms, rule)

    of_lanes = engines[: len(distinct)]
    return LoadedModel(
        bundle=bundle,
        lanes=tuple(
            Detector(of_lanes[0 if _shares(place) else index], nms, rule)
            for index, place in enumerate(lanes)
        ),
        wide=None if wide is None else Detector(engines[-1], nms, rule),
        provider=engines[0].provider,
        golden_examples=len(maker.golden),
        fresh=fresh,
        placement=placement(lanes, wide),
    )


def _shares(place: Place) -> bool:
    return place.device.kind is DeviceKind.CPU and place.threads == 1


@dataclass(frozen=True, slots=True)
class _EngineMaker:
    """Makes engines of one bundle that have reproduced the golden examples and are warm."""

    bundle: Bundle
    settings: Settings
    golden: list[Example]
    shapes: tuple[Shape, ...]

    def engine(self, place: Place) -> OnnxEngine | PlanEngine:
        engine = self._bare(place)
        compare_golden(engine, self.golden, self.bundle, engine.tolerance)
        self._warm(engine, place)
        return engine

    def _bare(self, place: Place) -> OnnxEngine | PlanEngine:
        settings, device = self.settings, place.device
        if device.kind is DeviceKind.PLAN:
            return open_plan(self.bundle, device, settings.gpu_options)
        return OnnxEngine(
            self.bundle, place.threads, settings.spinning, device, settings.gpu_options
        )

    def _warm(self, engine: Engine, place: Place) -> None:
        """Runs every other shape once, on a GPU also as the largest batch: the first run of a shape
        chooses kernels there.
        """
        done = {example.images.shape for example in self.golden}
        multiple = self.bundle.manifest.input.pad.multiple
        seen = [(h, w) for h, w in self.shapes if h % multiple == 0 and w % multiple == 0]
        for height, width in dict.fromkeys([*(shape[1:3] for shape in done), *seen]):
            counts = {1}
            if place.device.kind is not DeviceKind.CPU:
                room = self.settings.batch_pixels // (height * width)
                counts.add(max(1, min(self.settings.largest_batch, room)))
            for count in sorted(counts):
                if (count, height, width, 3) not in done:
                    engine.run(np.zeros((count, height, width, 3), np.uint8))
