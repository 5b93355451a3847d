"""`mask2former config`: keys, values and what set them; `mask2former evaluate`: flags of evaluation."""

import pytest
from tiny_runs import CONFIG

from mask2former.config import get_cfg
from mask2former.config.yaml_files import flatten
from mask2former.tools import evaluate, train
from mask2former.tools.config import main

SWIN = "coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"


def rows(capsys, *argv):
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines, {line.split()[0]: line for line in lines}


def test_keys_that_differ_are_printed_with_what_set_them(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(f"_BASE_: {CONFIG.parents[2] / SWIN}\nSOLVER: {{MAX_ITER: 9}}\nOUTPUT_DIR: ./output\n")
    lines, by_key = rows(capsys, str(file), "SEED", "3", "MODEL.WEIGHTS", "a b.pth")
    assert by_key["SOLVER.MAX_ITER"].split()[1:] == ["9", str(file.resolve())]
    assert by_key["SEED"].split()[1:] == ["3", "command", "line"]
    assert by_key["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"].split()[1:] == ["200", SWIN]
    assert by_key["MODEL.SWIN.EMBED_DIM"].split()[2] == "_base_/backbones/swin_large_IN21k_384.yaml"
    assert "'a b.pth'" in by_key["MODEL.WEIGHTS"] and "OUTPUT_DIR" not in by_key
    columns = {line.index(line.split()[1]) for line in lines if "[" not in line}
    assert len(columns) == 1


def test_all_keys_include_the_defaults(capsys):
    _, by_key = rows(capsys, str(CONFIG), "--all")
    assert by_key.keys() == flatten(get_cfg()).keys()
    assert by_key["MODEL.WEIGHTS_STRICT"].split()[1:] == ["True", "default"]


@pytest.mark.parametrize("argv", [["nowhere.yaml"], [str(CONFIG), "SEEED", "1"]])
def test_errors_are_one_line(capsys, argv):
    assert main(argv) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_evaluate_is_train_with_eval_only(monkeypatch):
    argv = ["--config-file", "x", "--num-gpus", "2", "SEED", "1"]
    given = vars(evaluate.parse_arguments([*argv, "--val-images", "a", "--val-annotations", "b"]))
    expected = vars(train.parse_arguments([*argv, "--eval-only"]))
    own = {"val_images": "a", "val_annotations": "b", "tile": None, "tile_overlap": None}
    assert given == {**expected, **own}
    with pytest.raises(SystemExit):
        evaluate.parse_arguments([*argv, "--train-images", "a"])
