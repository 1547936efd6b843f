"""Augmented views: the boxes must still sit on what they were drawn around."""

import colorsys
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes_data import shapes_tree

from clq_train.augment import MIN_SIDE_PX, augment
from clq_train.config import parse_config
from clq_train.errors import ConfigError

# Of each quarter of a painted image: no mixture of one with the grey ground is near another.
PAINTS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
GREY = 128


def make_config(folder, **changes):
    tree = shapes_tree(folder)
    tree["augment"] = {"crop_px": 128, "scale": [0.6, 1.5], "flip": 0.5, **changes}
    return parse_config(tree, "test")


@st.composite
def painted(draw):
    """A grey image with up to four boxes, one in each quarter, each painted in its own colour."""
    width, height = draw(st.integers(60, 260)), draw(st.integers(60, 260))
    pixels = np.full((height, width, 3), GREY, np.uint8)
    boxes, labels = [], []
    for label in draw(st.sets(st.integers(0, 3), min_size=1)):
        left, top = (label % 2) * (width // 2), (label // 2) * (height // 2)
        x1, y1 = (draw(st.integers(0, side // 2 - 12)) for side in (width, height))
        x2 = draw(st.integers(x1 + 8, width // 2 - 2))
        y2 = draw(st.integers(y1 + 8, height // 2 - 2))
        pixels[top + y1 : top + y2, left + x1 : left + x2] = PAINTS[label]
        boxes.append([left + x1, top + y1, left + x2, top + y2])
        labels.append(label)
    return pixels, np.array(boxes, np.float32), np.array(labels)


def extent_of(pixels, paint):
    """x1 y1 x2 y2 of the pixels nearest to a colour, by looking at each; None if there are none."""
    palette = np.vstack([PAINTS, [[GREY] * 3, [124, 116, 104]]]).astype(int)
    distance = np.abs(pixels[:, :, None].astype(int) - palette).sum(-1)
    mine = distance.argmin(-1) == paint
    if not mine.any():
        return None
    rows, cols = np.flatnonzero(mine.any(1)), np.flatnonzero(mine.any(0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])


RULES = st.fixed_dictionaries(
    {
        "flip": st.sampled_from([0.0, 0.5, 1.0]),
        "min_visible": st.sampled_from([0.0, 0.2, 0.7]),
    }
)
CROPS = st.fixed_dictionaries(
    {
        "crop_px": st.sampled_from([64, 128, 256]),
        "scale": st.sampled_from([[1.0, 1.0], [0.5, 2.0]]),
        "aim": st.sampled_from([0.0, 0.5, 1.0]),
    }
)
WHOLE = st.fixed_dictionaries(
    {"crop_px": st.none(), "shorter_px": st.sampled_from([[64, 64], [50, 200]])}
)


@settings(max_examples=40, deadline=None)
@given(painted(), RULES, CROPS | WHOLE, st.integers(0, 2**32))
def test_every_box_lies_on_its_own_colour_and_every_colour_has_its_box(
    shapes_folder, image, rules, kind, seed
):
    config = make_config(shapes_folder, **rules, **kind)
    pixels, boxes, labels = image
    sample = augment(pixels, boxes, labels, config, np.random.default_rng(seed))
    found = {label: extent_of(sample.pixels, label) for label in range(4)}
    assert len(set(sample.labels.tolist())) == len(sample.labels)
    assert set(sample.labels.tolist()) <= set(labels.tolist())
    for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
        assert found[label] is not None
        assert np.abs(box - found[label]).max() <= 1.5
    gone = {label for label, at in found.items() if at is not None} - set(sample.labels.tolist())
    for label in gone if config.augment.min_visible == 0 else ():
        assert (found[label][2:] - found[label][:2]).min() <= MIN_SIDE_PX + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 300), st.integers(40, 300), st.integers(0, 2**32), st.data())
def test_an_aimed_crop_holds_an_object_wherever_one_fits(shapes_folder, width, height, seed, data):
    config = make_config(shapes_folder, aim=1.0, crop_px=64, scale=[0.4, 3.0], min_visible=0.99)
    w = data.draw(st.floats(6, 20))
    h = data.draw(st.floats(6, 20))
    x = data.draw(st.floats(0, width - w))
    y = data.draw(st.floats(0, height - h))
    pixels = np.zeros((height, width, 3), np.uint8)
    box = np.array([[x, y, x + w, y + h]], np.float32).clip(0, [width, height, width, height])
    sample = augment(pixels, box, np.array([0]), config, np.random.default_rng(seed))
    # At a scale of 3, a crop of 64 px shows 21 px of the image: any of these boxes fits.
    assert len(sample.boxes) == 1


def test_an_aimed_crop_chooses_each_object_alike(shapes_folder):
    """Far apart and small: a crop holds one of them at most, and half of the image holds none."""
    config = make_config(shapes_folder, aim=0.8, crop_px=64, scale=[1.0, 1.0])
    boxes = np.array([[x, 450, x + 8, 458] for x in (10, 200, 400)], np.float32)
    pixels = np.zeros((500, 500, 3), np.uint8)
    counts = np.zeros(4, int)
    for seed in range(400):
        labels = augment(pixels, boxes, np.arange(3), config, np.random.default_rng(seed)).labels
        counts[labels[0] if len(labels) else 3] += 1
    assert 40 <= counts[3] <= 85  # 0.2 of 400, less the few that hit one by chance
    assert counts[:3].min() > 80


def test_where_no_object_fits_into_the_crop_it_lies_anywhere(shapes_folder):
    config = make_config(shapes_folder, aim=1.0, crop_px=64, scale=[1.0, 1.0], min_visible=0.0)
    box = np.array([[0, 0, 190, 190]], np.float32)
    pixels = np.arange(200 * 200 * 3).reshape(200, 200, 3).astype(np.uint8)
    views = [
        augment(pixels, box, np.array([0]), config, np.random.default_rng(s)).pixels.tobytes()
        for s in range(8)
    ]
    assert len(set(views)) == 8


def test_a_box_of_which_too_little_is_left_goes(shapes_folder):
    strict, lax = (make_config(shapes_folder, min_visible=share) for share in (0.9, 0.0))
    pixels, box = np.zeros((150, 200, 3), np.uint8), np.array([[60, 40, 120, 90]], np.float32)
    counts = [
        sum(
            len(augment(pixels, box, np.array([0]), c, np.random.default_rng(s)).boxes)
            for s in range(40)
        )
        for c in (strict, lax)
    ]
    assert 0 < counts[0] < counts[1]


def test_a_crop_is_the_resized_part_of_the_whole_image(shapes_folder):
    """Held against Pillow's resize of the whole image with a box; 1 level for its rounding."""
    noise = np.random.default_rng(1).integers(0, 256, (210, 330, 3), dtype=np.uint8)
    for seed in range(20):
        config = make_config(shapes_folder, flip=0.0, scale=[0.4, 2.5], crop_px=64)
        boxes = np.array([[0, 0, 330, 210]], np.float32)
        sample = augment(noise, boxes, np.array([0]), config, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scale = math.exp(rng.uniform(math.log(0.4), math.log(2.5)))
        width, height = min(64 / scale, 330), min(64 / scale, 210)
        left, top = rng.uniform(0, 330 - width), rng.uniform(0, 210 - height)
        size = round(width * scale), round(height * scale)
        expected = np.asarray(
            Image.fromarray(noise).resize(
                size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
            )
        )
        seen = sample.pixels[: size[1], : size[0]]
        assert np.abs(seen.astype(int) - expected).max() <= 1
        assert (sample.pixels[size[1] :] == (124, 116, 104)).all()


def reference_colours(pixels, sign_shift, contrast, brightness, saturation, turn):
    """Pixel by pixel, through Python's own YIQ."""
    sign, shift = sign_shift
    out = np.zeros_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            rgb = [float(v) * sign + shift for v in pixels[y, x]]
            rgb = [(v - 128) * contrast + 128 + brightness for v in rgb]
            luma, i, q = colorsys.rgb_to_yiq(*(v / 255 for v in rgb))
            colour = complex(i, q) * saturation * complex(math.cos(turn), math.sin(turn))
            red, green, blue = colorsys.yiq_to_rgb(luma, colour.real, colour.imag)
            out[y, x] = [math.floor(255 * v + 0.5) for v in (red, green, blue)]
    return out


@pytest.mark.parametrize("seed", range(6))
def test_colours_change_as_the_reference_says_and_the_boxes_do_not(shapes_folder, seed):
    photometric = {"invert": 0.5, "jitter": 0.4, "saturation": 0.6, "hue_deg": 40}
    changed, plain = (
        make_config(shapes_folder, crop_px=64, scale=[1.0, 1.0], flip=0.0, **rules)
        for rules in (photometric, {})
    )
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = pixels, np.array([[5, 6, 30, 40]], np.float32), np.array([1])
    sample = augment(*image, changed, np.random.default_rng(seed))
    before = augment(*image, plain, np.random.default_rng(seed))
    np.testing.assert_array_equal(sample.boxes, before.boxes)
    np.testing.assert_array_equal(before.pixels, pixels)
    rng = np.random.default_rng(seed)
    rng.uniform(0, 0)  # the scale
    rng.uniform(0, 0, 2)  # the corner
    rng.random()  # the flip
    sign_shift = (-1, 255) if rng.random() < 0.5 else (1, 0)
    contrast, brightness = 1 + rng.uniform(-0.4, 0.4), 128 * rng.uniform(-0.4, 0.4)
    saturation, turn = 1 + rng.uniform(-0.6, 0.6), math.radians(rng.uniform(-40, 40))
    expected = reference_colours(pixels, sign_shift, contrast, brightness, saturation, turn)
    assert np.abs(sample.pixels.astype(int) - expected).max() <= 1
    assert (sample.pixels != pixels).mean() > 0.5


def test_a_grey_picture_has_no_colour_to_change(shapes_folder):
    config = make_config(shapes_folder, crop_px=64, scale=[1.0, 1.0], saturation=1.0, hue_deg=180)
    pixels = np.repeat(np.arange(64 * 64).reshape(64, 64, 1) % 256, 3, 2).astype(np.uint8)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    sample = augment(pixels, *nothing, config, np.random.default_rng(0))
    assert (np.ptp(sample.pixels.astype(int), axis=2) <= 1).all()
    assert sample.boxes.shape == (0, 4)


def test_inverting_leaves_the_boxes_where_they_are(shapes_folder):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    image = pixels, np.array([[60, 40, 120, 90]], np.float32), np.array([0])
    plain, inverted = (
        augment(*image, make_config(shapes_folder, invert=p), np.random.default_rng(5))
        for p in (0.0, 1.0)
    )
    np.testing.assert_array_equal(plain.boxes, inverted.boxes)
    np.testing.assert_array_equal(plain.pixels, 255 - inverted.pixels)


def test_padding_is_right_and_bottom_in_its_own_colour_whatever_happens_to_the_image(shapes_folder):
    config = make_config(shapes_folder, flip=1.0, invert=1.0, jitter=0.5, scale=[1.0, 1.0])
    pixels = np.full((50, 70, 3), 200, np.uint8)
    box = np.array([[0, 0, 10, 10]], np.float32)
    sample = augment(pixels, box, np.array([0]), config, np.random.default_rng(0))
    assert sample.pixels.shape == (128, 128, 3)
    assert (sample.pixels[50:] == (124, 116, 104)).all()
    assert (sample.pixels[:, 70:] == (124, 116, 104)).all()
    assert sample.boxes.tolist() == [[60, 0, 70, 10]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": [1.5, 0.5]}, "scale: expected"),
        ({"scale": [0.0, 1.0]}, "scale: expected"),
        ({"crop_px": None, "shorter_px": [800, 480]}, "shorter_px: expected"),
        ({"crop_px": None, "shorter_px": [64, 128], "aim": 0.5}, "aim: whole images"),
        ({"group_aspect": True}, "crops all have one size"),
    ],
)
def test_rules_that_can_not_be_followed_are_refused(shapes_folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(shapes_folder, **changes)
