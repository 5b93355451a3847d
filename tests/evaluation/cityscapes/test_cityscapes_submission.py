"""The benchmark's files of found objects, and how files are found: what is broken is named."""

from pathlib import Path

import numpy as np
import pytest
from cityscapes_drawings import box, save_found, save_truth, scene

from mask2former.evaluation.cityscapes.ap import main

CAR = 26


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 26", "line 1: 'a.png 26' is not 'mask.png labelId score'"),
        ("a.png car 0.5", "line 1: 'car' is not a number"),
        ("a.png 26 nan", "line 1: 'nan' is not a number"),
        ("a.png 99 0.5", "line 1: label 99 is not among the known ones, 0 to 33"),
        ("a.png 26.5 0.5", "line 1: label 26.5 is not among"),
        ("a.png 26 0.5\na.png 26 0.6", "line 2: mask a.png is named twice"),
        ("../outside.png 26 0.5", "outside.png is outside of"),
        ("absent.png 26 0.5", "absent.png: no such file"),
        ("small.png 26 0.5", "small.png: the prediction is (2, 2) pixels"),
    ],
)
def test_command_names_a_broken_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    truth = save_truth(tmp_path / "truth", {"a_0_0": scene((26001, box(0, 0, 12, 12)))})
    folder = save_found(
        tmp_path / "found", {"x": [(box(0, 0, 12, 12), CAR, 0.5)], "y": [(np.ones((2, 2)), CAR, 1)]}
    )
    (folder / "x_0.png").rename(folder / "a.png")
    (folder / "y_0.png").rename(folder / "small.png")
    (folder / "a_0_0_pred.txt").write_text(line)
    assert main(["--gt-dir", str(truth), "--pred-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_command_names_files_that_are_missing_or_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = scene((26001, box(0, 0, 12, 12)))
    truth = save_truth(tmp_path / "truth", {"a_0_0": ids})
    twice = save_truth(tmp_path / "twice/train", {"a_0_0": ids}).parent
    save_truth(twice / "val", {"a_0_0": ids})
    (tmp_path / "nothing").mkdir()
    several = save_found(tmp_path / "several", {"a_0_0": [], "a_0_0_too": []})
    for gt, found, message in [
        (truth, tmp_path / "nothing", "nothing: no file of the name a_0_0*.txt"),
        (truth, several, "a_0_0_too.txt of the name a_0_0*.txt"),
        (tmp_path / "nothing", several, "nothing: no files *_instanceIds.png"),
        (twice, several, "are of the same image"),
    ]:
        assert main(["--gt-dir", str(gt), "--pred-dir", str(found)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
