"""metrics.csv: a run that resumes finds every whole row up to its checkpoint, and only those."""

import errno
import resource

import pytest

from clq_train.metrics_file import MetricsFile, read_metrics


def rows(path):
    """Without the time that they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]


def test_opening_the_metrics_of_a_run_loses_no_row_up_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    with MetricsFile(path, 0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"cls": step / 8})
    with path.open("a") as file:
        file.write("4,0.1")  # cut by a kill
    with MetricsFile(path, 2):
        pass  # a run that is killed before its first step
    with MetricsFile(path, 2) as metrics:
        metrics.write(3, {"cls": 9.0})
    assert rows(path) == [
        {"step": "1", "cls": "0.125"},
        {"step": "2", "cls": "0.25"},
        {"step": "3", "cls": "9"},
    ]


def test_metrics_get_their_header_after_a_run_that_was_killed_before_its_first_row(tmp_path):
    path = tmp_path / "metrics.csv"
    with MetricsFile(path, 0):
        pass
    with MetricsFile(path, 0) as metrics:
        metrics.write(1, {"cls": 0.5})
    assert rows(path) == [{"step": "1", "cls": "0.5"}]


def test_the_seconds_go_on_and_a_file_keeps_the_columns_that_it_began_with(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,seconds,cls\n1,100.0,0.5\n")
    with MetricsFile(path, 1) as metrics:
        metrics.write(2, {"cls": 0.25, "grad_norm": 7.0})
    assert path.read_text().startswith("step,seconds,cls")
    last = read_metrics(path)[-1]
    assert last.keys() == {"step", "seconds", "cls"}
    assert 100 <= float(last["seconds"]) < 110


def test_a_row_that_does_not_fit_on_the_disk_is_an_error_and_no_later_one_is_torn(tmp_path):
    path = tmp_path / "metrics.csv"
    with MetricsFile(path, 0) as metrics:
        metrics.write(1, {"cls": 0.5})
        size = path.stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, before[1]))
        try:
            with pytest.raises(OSError, match="No space left on device") as raised:
                metrics.write(2, {"cls": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.ENOSPC
    assert [row["step"] for row in read_metrics(path)] == ["1"]
    with MetricsFile(path, 1) as metrics:
        metrics.write(2, {"cls": 0.5})
    assert [row["step"] for row in read_metrics(path)] == ["1", "2"]
