"""The benchmark's files of objects, and how files are found: errors name what is wrong."""

import numpy as np
import pytest
from score_command import score_error
from synthetic_cityscapes import box, save_found, save_truth, scene

CAR = 26


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 26", "line 1: 'a.png 26' is not 'mask.png labelId score'"),
        ("a.png car 0.5", "line 1: 'a.png car 0.5' is not 'mask.png labelId score'"),
        ("a.png 26 nan", "line 1: the score is nan"),
        ("a.png 99 0.5", "line 1: label 99 is not among the known ones, 0 to 33"),
        ("a.png 26.5 0.5", "line 1: label 26.5 is not among"),
        ("a.png 26 0.5\na.png 26 0.6", "line 2: mask a.png is named twice"),
        ("../outside.png 26 0.5", "outside.png is outside of"),
        ("absent.png 26 0.5", "absent.png: no such file"),
        ("small.png 26 0.5", "small.png: the prediction is (2, 2) pixels"),
    ],
)
def test_command_names_a_broken_line(tmp_path, line, message):
    truth = save_truth(tmp_path / "truth", {"a_0_0": scene((26001, box(0, 0, 12, 12)))})
    folder = save_found(
        tmp_path / "found", {"x": [(box(0, 0, 12, 12), CAR, 0.5)], "y": [(np.ones((2, 2)), CAR, 1)]}
    )
    (folder / "x_0.png").rename(folder / "a.png")
    (folder / "y_0.png").rename(folder / "small.png")
    (folder / "a_0_0_pred.txt").write_text(line)
    assert message in score_error("cityscapes-instances", "--gt-dir", truth, "--pred-dir", folder)


def test_command_names_missing_and_ambiguous_files(tmp_path):
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
        assert message in score_error("cityscapes-instances", "--gt-dir", gt, "--pred-dir", found)
