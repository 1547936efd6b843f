"""The cache of decoded images: one limit for all processes, and the pixels that were put in."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_data import shapes_tree, write_shapes

from clq_train.coco import load_split
from clq_train.config import parse_config
from clq_train.errors import ConfigError
from clq_train.pixel_cache import PixelCache
from clq_train.samples import SampleStream

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_a_worker(work):
    """Runs it in a forked process, as a DataLoader's workers are."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0


def stream_of(folder, cache_mib, trainings=1):
    tree = shapes_tree(folder)
    tree["run"]["cache_mib"] = cache_mib
    config = parse_config(tree, "test")
    return SampleStream(load_split(config.data, "train"), config, trainings)


def test_what_one_worker_decodes_no_other_decodes_again(tmp_path):
    folder = write_shapes(tmp_path / "shapes")
    cached, plain = stream_of(folder, 1), stream_of(folder, 0)
    expected = [plain[position].pixels for position in range(8)]
    in_a_worker(lambda: [cached[position] for position in range(4)])
    for image in (folder / "images").iterdir():
        image.unlink()

    def read_all():
        for position, pixels in enumerate(expected):
            np.testing.assert_array_equal(cached[position].pixels, pixels)

    read_all()
    in_a_worker(read_all)


def test_several_trainings_on_a_machine_share_out_the_limit(tmp_path):
    stream = stream_of(write_shapes(tmp_path / "shapes"), 1, trainings=10)
    for position in range(4):
        stream[position]
    kept = [stream._cache.get(index) is not None for index in range(4)]
    assert kept == [True, True, False, False]  # 2 of 49,152 bytes fit into 104,857


SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 600))
def test_images_are_kept_whole_and_apart_up_to_the_limit(sizes, limit):
    cache = PixelCache(sizes, limit)
    images = [
        np.full((height, width, 3), index + 1, np.uint8)
        for index, (height, width) in enumerate(sizes)
    ]
    assert all(cache.get(index) is None for index in range(len(sizes)))
    for index, pixels in enumerate(images):
        cache.put(index, pixels)
    room = limit
    for index, pixels in enumerate(images):
        kept = cache.get(index)
        if pixels.nbytes <= room:  # each in turn that still fits
            room -= pixels.nbytes
            np.testing.assert_array_equal(kept, pixels)
        else:
            assert kept is None


def test_more_memory_than_there_can_be_is_refused_before_the_first_step():
    with pytest.raises(ConfigError, match=r"run\.cache_mib: no 286102295 MiB of memory"):
        PixelCache([(10**7, 10**7)], 2**60)
