"""Computed lists of published files, and a published file as users have it in their forks."""

import pytest

from mask2former.config import load_config
from mask2former.config.yaml_files import evaluate_arithmetic


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[int(x * 0.1 * 640) for x in range(5, 9)]", [320, 384, 448, 512]),
        ("[32 * n for n in range(3)]", [0, 32, 64]),
        ("[1, 2 + 3, -4 // 2]", [1, 5, -2]),
        ("(round(2.6), 7 % 4)", [3, 3]),
        ("2 * (3 + 4) / 4", 3.5),
        ("float(1)", 1.0),
    ],
)
def test_arithmetic(expression, value):
    assert evaluate_arithmetic(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "[print(x) for x in range(3)]",
        "[x for x in range(3) if x]",
        "[x for x in [1, 2]]",
        "[y for x in range(3)]",
        "[x for x in range(10 ** 9)]",
        "[x for x in range(1000000)]",
        "(1).real",
        "'a' * 3",
        "1 / 0",
        "int()()",
        "range()",
        "1 +",
        "9 ** 9 ** 9",
        "[[1]]",
    ],
)
def test_anything_else_is_refused(expression):
    with pytest.raises(ValueError, match=r"not run|cannot compute|too long"):
        evaluate_arithmetic(expression)


BASE = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
FORK_BASE = """\
MODEL:
  BACKBONE:
    FREEZE_AT: 0
    NAME: "build_resnet_backbone"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
  ROI_HEADS:
    NUM_CLASSES: 80
  RESNETS:
    STEM_TYPE: "basic"
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
DATASETS:
  TRAIN: ("my_train",)
  TEST: ("my_val",)
SOLVER:
  BASE_LR: 1e-4
  STEPS: (3, 4)
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]
  CROP:
    ENABLED: True
    TYPE: "absolute"
    SIZE: (512, 512)
  FORMAT: "RGB"
TEST:
  AUG:
    MIN_SIZES: [256, 384, 512, 640, 768, 896]
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: True
VERSION: 2
"""

FORK_LEAF = """\
_BASE_: ../Base-Mine.yaml
MODEL:
  META_ARCHITECTURE: "MaskFormer"
  SEM_SEG_HEAD:
    NAME: "MaskFormerHead"
    LOSS_WEIGHT: 1.0
    NUM_CLASSES: 7
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: ["res3", "res4", "res5"]
  MASK_FORMER:
    TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"
    ENC_LAYERS: 0
    DEC_LAYERS: 10
"""


def test_a_published_file_from_a_fork_loads(tmp_path, caplog):
    (tmp_path / "task").mkdir()
    (tmp_path / "Base-Mine.yaml").write_text(FORK_BASE)
    leaf = tmp_path / "task/leaf.yaml"
    leaf.write_text(FORK_LEAF)
    cfg = load_config(leaf)
    assert cfg.INPUT.MIN_SIZE_TRAIN[:3] == (256, 307, 358)
    assert cfg.INPUT.MIN_SIZE_TRAIN[-1] == 1024
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.INPUT.CROP.SIZE) == (1e-4, (3, 4), [512, 512])
    assert (cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (("my_train",), 7)
    warnings = [record.message for record in caplog.records]
    for message, key in zip(warnings, ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.NUM_CLASSES"), strict=True):
        assert message.startswith(f"{tmp_path / 'Base-Mine.yaml'}: {key} = ")


def test_base_files_that_double_at_each_level_are_an_error(tmp_path):
    (tmp_path / "0.yaml").write_text("SEED: 1")
    for level in range(1, 41):
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: [{level - 1}.yaml, {level - 1}.yaml]")
    assert load_config(tmp_path / "5.yaml").SEED == 1
    with pytest.raises(ValueError, match=r"8\.yaml: _BASE_ leads to 256 files or more"):
        load_config(tmp_path / "40.yaml")


@pytest.mark.parametrize("level", ["[*a{0}, *a{0}]", "{{x: *a{0}, y: *a{0}}}", "{{<<: [*a{0}, *a{0}]}}"])
def test_aliases_that_double_at_each_level_are_an_error(tmp_path, level):
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {level.format(n - 1)}" for n in range(1, 41))]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"x\.yaml: holds more than 100000 values, with its aliases"):
        load_config(tmp_path / "x.yaml")


def test_aliases_are_read_as_before(tmp_path):
    (tmp_path / "x.yaml").write_text("TEST: {AUG: {MIN_SIZES: &a [1, 2]}}\nSOLVER: {STEPS: *a}")
    assert load_config(tmp_path / "x.yaml").SOLVER.STEPS == (1, 2)


def test_a_long_value_is_shortened_in_the_message(tmp_path):
    (tmp_path / "x.yaml").write_text(f"SEED: {list(range(1000))}")
    with pytest.raises(ValueError, match=r"x\.yaml: SEED is \[0, 1, 2") as error:
        load_config(tmp_path / "x.yaml")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: 1" + ":1" * 490_000, "line 1: a number of 980001 characters"),
        ("SEED: 0x" + "f" * 5000, "line 1: a number of 5002 characters"),
        ("SEED: [" + "a, " * 40_000 + "]", "holds more than 30000 values"),
        ("SEED: 1" + "\n" * 1_000_000, "has 1000007 characters, more than 1000000"),
        ("[" * 900_000, "is nested too deeply"),
        ("SEED: !!timestamp 1", "a tag that does not fit its value"),
        ("SEED: !!int ''", "a tag that does not fit its value"),
        ("SEED: !!bool x", "a tag that does not fit its value"),
        ("SEED: 2001-99-99", "month must be in 1..12"),
        ("SEED: 1\nMODEL: a: b", "line 2, column 9: mapping values are not allowed here"),
        (
            "SEED: !!python/object/apply:os.system ['true']",
            "line 1, column 7: could not determine a constructor",
        ),
        (f"SEED: !!python/object/apply:eval ['{'a' * 5000}']", "'aaa"),
        (f"? {'a' * 5000}\n: 1", "unknown key aaa"),
        (f"SEED: '{'-' * 5000}1'", "SEED is '---"),
        (
            "_BASE_: ~nobody-of-this-name/x.yaml",
            "_BASE_ is '~nobody-of-this-name/x.yaml': Could not determine",
        ),
        ('_BASE_: "\\0"', r"_BASE_ is '\\x00': embedded null byte"),
        (f"_BASE_: {'a' * 5000}", "_BASE_ is 'aaa"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_files_are_refused_in_one_short_line(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.yaml: .*{message}") as error:
        load_config(tmp_path / "x.yaml")
    assert len(str(error.value).removeprefix(str(tmp_path))) < 500
    assert str(error.value).isprintable()


def test_a_long_chain_of_bases_is_an_error(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: {number + 1}.yaml")
    with pytest.raises(ValueError, match=r"64\.yaml: is reached by 64 _BASE_ in a row"):
        load_config(tmp_path / "0.yaml")


def test_a_number_beyond_floats_is_an_error():
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR is 1000"):
        load_config(BASE, ["SOLVER.BASE_LR", "1" + "0" * 400])
