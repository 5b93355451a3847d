"""The log of a run: what goes to which stream, and a full disk."""

import logging

from full_disk import files_no_larger_than

from mask2former.engine.logger import RESULT, setup_logger

logger = logging.getLogger("mask2former.test")


def test_results_go_to_stdout_other_lines_to_stderr_and_all_to_the_file(tmp_path, capsys):
    setup_logger(tmp_path)
    logger.info("progress of %s", "a\nb\x1b")
    logger.info("result", extra=RESULT)
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err.endswith(" INFO progress of a\\nb\\x1b\n") and err.count("\n") == 1
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == ["progress of a\\nb\\x1b", "result"]


def test_a_full_disk_is_one_warning_and_the_run_goes_on(tmp_path, capsys):
    setup_logger(tmp_path)
    logger.info("first")
    size = (tmp_path / "log.txt").stat().st_size
    with files_no_larger_than(size):
        logger.info("second")
        logger.info("third")
        setup_logger()  # closes the file
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    reason = "is incomplete: it cannot be written ([Errno 27] File too large)"
    assert lines == ["INFO first", "INFO second", f"WARNING {tmp_path / 'log.txt'} {reason}", "INFO third"]
    assert (tmp_path / "log.txt").stat().st_size == size
