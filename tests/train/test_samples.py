"""The stream of samples: what position p holds, decoding, the cache, and batches."""

import numpy as np
import pytest
from PIL import Image
from shapes_data import shapes_tree, write_shapes

from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.errors import DataError
from clq_train.samples import SampleStream, collate, read_pixels


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), images=3, side=160)


def make_config(folder, **augment_changes):
    tree = shapes_tree(folder)
    tree["augment"] = {"crop_px": 128, "scale": [0.6, 1.5], "flip": 0.5, **augment_changes}
    return parse_config(tree, "test")


def test_a_sample_depends_on_seed_and_position_alone(shapes):
    config = make_config(shapes)
    records = load_split(config.data, "train")
    first, second = SampleStream(records, config), SampleStream(records, config)
    forward = [first[i] for i in range(9)]
    backward = [second[i] for i in reversed(range(9))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert any((forward[0].pixels != other.pixels).any() for other in forward[3:])


def test_a_batch_says_which_images_it_holds(shapes):
    config = make_config(shapes)
    stream = SampleStream(load_split(config.data, "train"), config)
    ids = collate([stream[i] for i in range(6)], 64, (1, 2, 3)).image_ids
    assert sorted(ids[:3]) == sorted(ids[3:]) == [1, 2, 3]


def test_every_epoch_shows_every_image_once(shapes):
    config = make_config(shapes)
    stream = SampleStream(load_split(config.data, "train"), config)
    shown = []
    stream._pixels = lambda index: shown.append(index) or np.zeros((160, 160, 3), np.uint8)
    for position in range(9):
        stream[position]
    assert [sorted(shown[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_the_cache_gives_the_same_pixels_and_respects_its_limit(shapes):
    tree = shapes_tree(shapes)
    tree["run"]["cache_mib"] = 0
    none = SampleStream(load_split(parse_config(tree, "t").data, "train"), parse_config(tree, "t"))
    tree["run"]["cache_mib"] = 1
    some = SampleStream(none.records, parse_config(tree, "t"))
    for position in range(6):
        np.testing.assert_array_equal(none[position].pixels, some[position].pixels)
    assert len(none._cache) == 0
    assert len(some._cache) == 3


def test_a_batch_is_padded_right_and_bottom_to_the_stride(shapes):
    config = make_config(shapes, crop_px=None, shorter_px=[100, 140])
    stream = SampleStream(load_split(config.data, "train"), config)
    samples = [stream[1], stream[2]]
    batch = collate(samples, 64, (1, 2, 3))
    assert batch.images.shape[1] % 64 == batch.images.shape[2] % 64 == 0
    for image, sample, objects in zip(batch.images, samples, batch.objects, strict=True):
        height, width = sample.pixels.shape[:2]
        np.testing.assert_array_equal(image[:height, :width], sample.pixels)
        assert (image[height:] == np.array([1, 2, 3])).all()
        assert (image[:, width:] == np.array([1, 2, 3])).all()
        np.testing.assert_array_equal(objects.boxes, sample.boxes)


def test_an_image_of_another_size_than_annotated_is_refused(shapes, tmp_path):
    config = make_config(write_shapes(tmp_path / "copy", images=1))
    (record,) = load_split(config.data, "train")
    Image.new("RGB", (50, 60)).save(record.path)
    with pytest.raises(DataError, match="the image is 50 x 60, the annotations say 128 x 128"):
        read_pixels(record, (255, 255, 255))


def test_a_damaged_image_is_named(shapes, tmp_path):
    config = make_config(write_shapes(tmp_path / "copy", images=1))
    (record,) = load_split(config.data, "train")
    record.path.write_bytes(record.path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"0\.png: the PNG file stops before its end"):
        read_pixels(record, (255, 255, 255))
