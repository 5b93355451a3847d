"""metrics.json across resumes."""

import json

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
