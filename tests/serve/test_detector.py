"""From pixels to detections in the original image."""

import numpy as np
import pytest

from clq_serve.candidates import Candidates
from clq_serve.detector import Detections, DetectOptions, Detector
from clq_serve.loading import LoadedModel
from clq_serve.nms import ClassNms
from clq_serve.preprocess import DecodedImage, InputRule, Pixels

ALL = DetectOptions(score=0.3, iou=0.6, max=100)


def canvas(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def same(a: Detections, b: Detections) -> bool:
    fields = ("boxes", "scores", "labels", "cls_scores", "qualities")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


def test_a_painted_cell_is_found_where_it_was_painted(tiny_model_loaded: LoadedModel) -> None:
    pixels = canvas(300, 200)  # shorter side 96 of 200: scale 0.48
    scale = 96 / 200
    box = [round(32 / scale), round(64 / scale), round(64 / scale), round(96 / scale)]
    pixels[box[1] : box[3], box[0] : box[2]] = (0, 0, 255)
    (found,), times = tiny_model_loaded.lanes[0].detect([pixels], ALL)
    assert found.labels.tolist() == [2]
    assert found.boxes[0] == pytest.approx(box, abs=1)
    assert found.scores[0] == pytest.approx(1.0, abs=0.05)
    assert min(times.prepare_ms, times.infer_ms, times.post_ms) > 0


def test_a_batch_of_any_sizes_gives_what_each_image_gives_alone(
    tiny_model_loaded: LoadedModel,
) -> None:
    rng = np.random.default_rng(2)
    sizes = [(64, 64), (200, 90), (64, 64), (90, 200), (70, 40), (200, 90), (1, 1)]
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in sizes]
    detector = tiny_model_loaded.lanes[0]
    together, _ = detector.detect(images, ALL)
    alone = [detector.detect([image], ALL)[0][0] for image in images]
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    assert detector.detect([], ALL)[0] == []


def test_a_decoded_image_and_its_pixels_give_the_same(tiny_model_loaded: LoadedModel) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    decoded = DecodedImage(pixels, "PNG", False)
    found, _ = tiny_model_loaded.lanes[0].detect([pixels, decoded], ALL)
    assert same(found[0], found[1])


def test_options_choose_what_is_given(tiny_model_loaded: LoadedModel) -> None:
    pixels = canvas(96, 64)
    pixels[:32, :32] = (255, 0, 0)
    pixels[:32, 32:64] = (0, 200, 0)
    pixels[:32, 64:] = (0, 0, 150)
    detect = tiny_model_loaded.lanes[0].detect

    def labels(options: DetectOptions) -> list[int]:
        return detect([pixels], options)[0][0].labels.tolist()

    assert labels(ALL) == [0, 1, 2]
    assert labels(DetectOptions(0.7, 0.6, 100)) == [0, 1]
    assert labels(DetectOptions(0.3, 0.6, 1)) == [0]
    assert labels(DetectOptions(0.3, 0.6, 1, frozenset({1, 2}))) == [1]
    assert labels(DetectOptions(0.3, 0.6, 100, frozenset())) == []
    assert labels(DetectOptions(0.0, 0.6, 100, frozenset({2}))) == [2]


def test_detections_stay_inside_the_image(tiny_model_loaded: LoadedModel) -> None:
    white = np.full((70, 70, 3), 255, np.uint8)
    white[..., 1] = 0
    (found,), _ = tiny_model_loaded.lanes[0].detect([white], DetectOptions(0.0, 0.6, 1000))
    assert len(found.scores) > 4
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 70
    assert (np.diff(found.scores) <= 0).all()


class FixedEngine:
    """An engine that gives the same boxes, all of label 0, whatever it sees."""

    def __init__(self, boxes: list[list[float]]) -> None:
        self.boxes = np.array([boxes], np.float32)

    def run(self, batch: Pixels) -> Candidates:
        scores = np.linspace(0.9, 0.5, self.boxes.shape[1], dtype=np.float32)[None]
        return Candidates(self.boxes, scores, np.zeros(scores.shape, np.int64), scores, scores)


def detect_fixed(boxes: list[list[float]]) -> list[list[float]]:
    """Detections in a 100 x 60 image, which is padded to 128 x 64."""
    rule = InputRule(200, 200, False, 64, (0, 0, 0), (255, 255, 255))
    detector = Detector(FixedEngine(boxes), ClassNms(), rule)
    pixels = np.zeros((60, 100, 3), np.uint8)
    ((found,), _) = detector.detect([pixels], DetectOptions(0.1, 0.6, 10))
    boxes_found: list[list[float]] = found.boxes.tolist()
    return boxes_found


def test_a_box_in_the_padding_is_not_a_detection() -> None:
    assert detect_fixed([[104, 10, 120, 30], [10, 61, 30, 64], [10, 10, 30, 30]]) == [
        [10, 10, 30, 30]
    ]


def test_the_overlap_that_counts_is_the_one_inside_the_image() -> None:
    # Inside the image the two are the same box; with what lies outside their IoU is under 0.6.
    assert detect_fixed([[0, 10, 20, 30], [-30, 10, 20, 30]]) == [[0, 10, 20, 30]]


def test_default_options_come_from_the_manifest(tiny_model_loaded: LoadedModel) -> None:
    thresholds = tiny_model_loaded.bundle.manifest.thresholds
    assert DetectOptions.from_thresholds(thresholds) == DetectOptions(0.3, 0.6, 100)
