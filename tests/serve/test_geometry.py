"""Resizing, padding and the way back of boxes, against plain arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clq_serve.preprocess import Geometry, InputRule, boxes_to_original, plan, prepare, resize

side = st.integers(1, 4000)
rules = st.builds(
    InputRule,
    shorter_px=st.integers(1, 900),
    longer_px=st.integers(900, 2000),
    upscale=st.booleans(),
    multiple=st.sampled_from([1, 32, 64, 128]),
    pad_value=st.just((124, 116, 104)),
    background=st.just((255, 255, 255)),
    largest_scale=st.none() | st.floats(0.01, 3),
)
RULE = InputRule(960, 1920, False, 64, (124, 116, 104), (255, 255, 255))


def planned_by_hand(width: int, height: int, rule: InputRule) -> Geometry:
    short, long = sorted((width, height))
    scale = rule.shorter_px / short
    if long * scale > rule.longer_px and rule.longer_px / long < scale:
        scale = rule.longer_px / long
    if scale > 1 and not rule.upscale:
        scale = 1.0
    if rule.largest_scale and scale > rule.largest_scale:
        scale = rule.largest_scale
    sizes = []
    for value in (width, height):
        new = math.floor(value * scale)
        if value * scale - new >= 0.5:  # round half up
            new += 1
        sizes.append(max(new, 1))
    padded = []
    for value in sizes:
        while value % rule.multiple:
            value += 1
        padded.append(value)
    return Geometry(width, height, *sizes, *padded)


@settings(deadline=None)
@given(side, side, rules)
def test_sizes_follow_the_rule(width: int, height: int, rule: InputRule) -> None:
    assert plan(width, height, rule) == planned_by_hand(width, height, rule)


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((1920, 1080), (1707, 960), (1728, 960)),
        ((1080, 1920), (960, 1707), (960, 1728)),
        ((640, 480), (640, 480), (640, 512)),
        ((16384, 1), (1920, 1), (1920, 64)),
        ((1, 1), (1, 1), (64, 64)),
    ],
)
def test_known_sizes(
    size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert plan(*size, RULE) == Geometry(*size, *resized, *padded)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1280, 800), (704, 440)),
        ((1920, 1080), (1056, 594)),  # a larger screen is not shrunk more
        ((3840, 2160), (1707, 960)),  # until it meets the sides
        ((1, 1), (1, 1)),
    ],
)
def test_no_image_is_resized_by_more_than_the_largest_scale(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    geometry = plan(*size, replace(RULE, largest_scale=0.55))
    assert (geometry.resized_width, geometry.resized_height) == resized


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_a_size_without_area_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no content"):
        plan(*size, RULE)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 300), rules)
def test_the_input_is_the_resized_image_and_then_padding(
    width: int, height: int, rule: InputRule
) -> None:
    rng = np.random.default_rng(width * 1000 + height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded, geometry = prepare(pixels, rule)
    h, w = geometry.resized_height, geometry.resized_width
    expected = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
    assert padded.shape == (geometry.padded_height, geometry.padded_width, 3)
    assert np.array_equal(padded[:h, :w], expected)
    assert (padded[h:] == rule.pad_value).all()
    assert (padded[:, w:] == rule.pad_value).all()


def test_an_image_that_fits_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert resize(pixels, 70, 50) is pixels
    assert np.array_equal(prepare(pixels, RULE)[0][:50, :70], pixels)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
)
def test_pixels_of_another_shape_or_type_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        prepare(pixels, RULE)


@settings(deadline=None)
@given(side, side, rules, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back_to_where_they_were(
    width: int, height: int, rule: InputRule, parts: list[float]
) -> None:
    geometry = plan(width, height, rule)
    original = np.array([parts[0] * width, parts[1] * height, parts[2] * width, parts[3] * height])
    across, down = geometry.resized_width / width, geometry.resized_height / height
    inside = (original * [across, down, across, down]).astype(np.float32)[None]
    back = boxes_to_original(inside, geometry)
    assert back.dtype == np.float32
    assert back[0] == pytest.approx(original, rel=1e-5, abs=1e-3)


def test_boxes_are_clipped_to_the_image_and_none_stays_none() -> None:
    geometry = plan(1920, 1080, RULE)
    wild = np.array([[-50, -1, 1e6, 1e6], [1720, 5, 1728, 900]], np.float32)
    clipped = boxes_to_original(wild, geometry)
    assert clipped[0].tolist() == [0, 0, 1920, 1080]
    assert clipped[1, 0] == clipped[1, 2] == 1920
    assert boxes_to_original(np.zeros((0, 4), np.float32), geometry).shape == (0, 4)
