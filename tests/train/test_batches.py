"""Which images a process sees: together they see what one alone would, wherever a run resumes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes_data import shapes_tree, write_shapes

from clq_train.batches import batches, positions
from clq_train.coco import load_split
from clq_train.config import ScheduleConfig, parse_config
from clq_train.errors import ConfigError, DataError
from clq_train.processes import Processes


def schedule_of(steps, batch, accumulate):
    return ScheduleConfig(
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        optimizer="sgd",
        lr=0.1,
        weight_decay=0,
        decay="step",
        warmup_steps=0,
    )


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_the_processes_share_out_the_images_of_every_step(count, accumulate, size, start):
    batch = count * accumulate * size
    schedule = schedule_of(5, batch, accumulate)
    shares = [list(positions(schedule, start, Processes(r, count))) for r in range(count)]
    for step in range(start, 5):
        row = (step - start) * accumulate
        seen = [p for share in shares for part in share[row : row + accumulate] for p in part]
        assert seen == list(range(step * batch, (step + 1) * batch))
    assert all(len(part) == size for share in shares for part in share)
    assert all(len(share) == (5 - start) * accumulate for share in shares)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ConfigError, match=r"16 images .* 3 processes, .*accepted: multiples of 6"):
        list(positions(schedule_of(1, 16, 2), 0, Processes(0, 3)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(tmp_path, workers):
    tree = shapes_tree(write_shapes(tmp_path / "data", images=1))
    tree["run"]["workers"] = workers
    config = parse_config(tree, "test")
    records = load_split(config.data, "train")
    file = tmp_path / "data/images/0.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError) as raised:
        next(batches(records, config, 0))
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)
