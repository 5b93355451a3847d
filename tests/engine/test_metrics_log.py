"""metrics.json across resumes, and on a full disk."""

import json

import numpy as np
import pytest
from full_disk import files_no_larger_than

from mask2former.config import get_cfg
from mask2former.engine.errors import TrainingError
from mask2former.engine.loggers import build_loggers
from mask2former.engine.metrics_log import METRICS_FILE, MetricsLog, read_metrics


def write(folder, done, *lines):
    """Write lines after `done` steps, and return the whole file's."""
    log = MetricsLog(folder, done)
    for iteration, values in lines:
        log.write(iteration, values)
    log.close()
    return read_metrics(folder / METRICS_FILE)


def test_a_resume_drops_lines_of_steps_that_run_again(tmp_path):
    write(tmp_path, 0, *((iteration, {"total_loss": iteration / 2}) for iteration in (4, 9, 14)))
    lines = write(tmp_path, 10, (14, {"total_loss": 0.5}))
    assert [(line["iteration"], line["total_loss"]) for line in lines] == [(4, 2.0), (9, 4.5), (14, 0.5)]


def test_an_unfinished_last_line_is_ignored(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"iteration": 4}\n{"iteration": 9, "total')
    assert [line["iteration"] for line in write(tmp_path, 20, (24, {"x": 1.0}))] == [4, 24]


@pytest.mark.parametrize("line", [b"", b"[4]", b'{"iteration": "4"}', b"{}", b"\xff\x00", b"[" * 100_000])
def test_a_line_of_another_kind_is_an_error_that_names_file_and_line(tmp_path, line):
    (tmp_path / METRICS_FILE).write_bytes(b'{"iteration": 4}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"metrics\.json, line 2: '.* is no line of metrics") as error:
        MetricsLog(tmp_path, 10)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_non_finite_values_are_null(tmp_path):
    write(tmp_path, 0, (0, {"segm/APl": float("nan"), "segm/AP": 1.0}))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / METRICS_FILE).read_text(), parse_constant=refuse)
    assert line == {"iteration": 0, "segm/APl": None, "segm/AP": 1.0}


def test_evaluations_are_remembered_by_step(tmp_path):
    write(tmp_path, 0, (4, {"total_loss": 1.0}), (4, {"segm/AP": 1.0}), (9, {"total_loss": 1.0}))
    log = MetricsLog(tmp_path, 10)
    assert log.has_results(4) and not log.has_results(9)
    log.close()


def test_a_full_disk_is_an_error_that_names_the_file_and_earlier_lines_stay(tmp_path, capfd):
    log = MetricsLog(tmp_path, 0)
    log.write(0, {"total_loss": 1.0})
    message = r"metrics\.json cannot be written .*Is the disk full"
    with files_no_larger_than(0), pytest.raises(TrainingError, match=message):
        log.write(1, {"total_loss": 2.0})
    log.close()
    assert read_metrics(tmp_path / METRICS_FILE)[0] == {"iteration": 0, "total_loss": 1.0}
    with files_no_larger_than(0), pytest.raises(TrainingError, match=message):
        MetricsLog(tmp_path, 1)
    assert capfd.readouterr().err == ""


def test_a_full_disk_for_events_is_the_same_error_without_a_traceback_of_the_thread(tmp_path, capfd):
    log = MetricsLog(tmp_path, 0, build_loggers(get_cfg(), tmp_path, 0))
    log.write(0, {"total_loss": 1.0})
    (events,) = tmp_path.glob("events.out*")
    with files_no_larger_than(events.stat().st_size), pytest.raises(TrainingError, match="Is the disk full"):
        for step in range(1, 1000):
            log.write(step, {})  # into a file that is smaller
            log.write_image(step, "x", np.zeros((64, 64, 3), np.uint8))
    assert "Traceback" not in capfd.readouterr().err
