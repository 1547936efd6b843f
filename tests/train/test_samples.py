"""The stream of samples: what position p holds, decoding, the cache, and batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapes_data import shapes_tree, write_shapes

from clq_train.batches import batches
from clq_train.coco import Record, load_split
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
    paths = collate([stream[i] for i in range(6)], 64, (1, 2, 3)).paths
    files = sorted(str(path) for path in (shapes / "images").iterdir())
    assert sorted(paths[:3]) == sorted(paths[3:]) == files


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:.*fork:DeprecationWarning"
)
def test_any_number_of_workers_gives_the_same_stream_and_no_sample_twice(shapes):
    tree = shapes_tree(shapes)
    tree["schedule"] |= {"steps": 4, "batch": 3}
    tree["run"]["cache_mib"] = 1
    streams = []
    for workers in (0, 1, 2, 4):
        tree["run"]["workers"] = workers
        config = parse_config(tree, "test")
        records = load_split(config.data, "train")
        streams.append([batch for parts in batches(records, config, 0) for batch in parts])
    for other in streams[1:]:
        assert len(other) == len(streams[0]) == 4
        for ours, theirs in zip(streams[0], other, strict=True):
            assert torch.equal(ours.images, theirs.images)
            for a, b in zip(ours.objects, theirs.objects, strict=True):
                assert torch.equal(a.boxes, b.boxes)
                assert torch.equal(a.labels, b.labels)
    images = [image.numpy().tobytes() for batch in streams[0] for image in batch.images]
    assert len(set(images)) == len(images) == 12


def test_an_image_that_an_epoch_shows_often_is_decoded_once(tmp_path):
    tree = shapes_tree(write_shapes(tmp_path / "shapes", images=2))
    tree["run"]["cache_mib"] = 1
    config = parse_config(tree, "test")
    records = 3 * load_split(config.data, "train")
    stream = SampleStream(records, config)
    shown = [records[stream.image_at(position)].path for position in range(6)]
    for path in set(shown):
        stream[shown.index(path)]
        path.unlink()
    samples = [stream[position] for position in range(6)]  # no file is there to be read
    assert sorted(sample.path for sample in samples) == sorted(map(str, shown))


def stream_of(sizes, **changes):
    """A stream over images of these sizes (width, height) that are never read."""
    tree = shapes_tree(Path("nowhere"))
    tree["schedule"] |= {"steps": 60, "batch": changes.pop("batch")}
    tree["augment"] = {"shorter_px": [64, 200], **changes}
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    records = [Record(i, Path(str(i)), w, h, *nothing) for i, (w, h) in enumerate(sizes)]
    return SampleStream(records, parse_config(tree, "test"))


SIZES = st.lists(st.sampled_from([(40, 30), (30, 40), (50, 50)]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 9), st.booleans())
def test_every_epoch_holds_every_image_once_grouped_or_not(sizes, batch, grouped):
    stream = stream_of(sizes, batch=batch, group_aspect=grouped)
    count = len(sizes)
    for epoch in range(4):
        shown = [stream.image_at(epoch * count + place) for place in range(count)]
        assert sorted(shown) == list(range(count))
    assert [stream.image_at(p) for p in reversed(range(count))] == [
        stream_of(sizes, batch=batch, group_aspect=grouped).image_at(p)
        for p in reversed(range(count))
    ]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 9))
def test_at_most_one_step_an_epoch_mixes_wide_and_tall_images(sizes, batch):
    stream = stream_of(sizes, batch=batch, group_aspect=True)
    epochs = 6
    steps = epochs * len(sizes) // batch
    kinds = [
        {
            sizes[stream.image_at(position)] == (30, 40)
            for position in range(s * batch, (s + 1) * batch)
        }
        for s in range(steps)
    ]
    assert sum(len(kind) == 2 for kind in kinds) <= epochs


def test_grouped_steps_are_shuffled_and_differ_between_epochs():
    stream = stream_of([(40, 30)] * 20 + [(30, 40)] * 20, batch=4, group_aspect=True)
    tall = [[stream.image_at(e * 40 + p) >= 20 for p in range(0, 40, 4)] for e in range(4)]
    assert all(sum(kinds) == 5 for kinds in tall)
    assert len({tuple(kinds) for kinds in tall}) == 4


def test_the_images_of_a_step_have_one_size_where_it_is_drawn_by_step(shapes):
    tree = shapes_tree(shapes)
    tree["schedule"]["batch"] = 4
    sides = {}
    for by_step in (True, False):
        tree["augment"] = {"shorter_px": [64, 128], "size_by_step": by_step}
        config = parse_config(tree, "test")
        stream = SampleStream(load_split(config.data, "train"), config)
        sides[by_step] = [[len(stream[s * 4 + i].pixels) for i in range(4)] for s in range(5)]
    assert all(len(set(step)) == 1 for step in sides[True])
    assert len({step[0] for step in sides[True]}) > 2
    assert any(len(set(step)) > 1 for step in sides[False])


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


def test_a_run_without_an_image_is_refused(shapes):
    with pytest.raises(DataError, match="there is no image to train on"):
        SampleStream([], make_config(shapes))


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
