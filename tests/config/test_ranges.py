"""Numbers in a config that can only be mistakes."""

import math

import pytest

from mask2former.config import get_cfg
from mask2former.config.defaults import DEFAULTS
from mask2former.config.ranges import NAMES, RANGES, check_ranges
from mask2former.modeling.postprocessing.inference import TASKS

QUERIES, SIZE = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "INPUT.MIN_SIZE_TEST"
THRESHOLD = "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (QUERIES, 1_000_000_000, "is 1000000000; it must be at most 10000"),
        (SIZE, 100_000, "is 100000; it must be from 0 to 32768"),
        (SIZE, -5, "is -5; it must be from 0 to 32768"),
        ("INPUT.MAX_SIZE_TEST", -1, "is -1; it must be at least 1"),
        ("MODEL.SWIN.WINDOW_SIZE", 10_000, "is 10000; it must be at most 64"),
        ("TEST.AUG.MIN_SIZES", [400, -1], r"is \(400, -1\); it must be from 0 to 32768"),
        ("INPUT.MIN_SIZE_TRAIN", [-1] * 1000, "is -1 in a list; it must be"),
        (THRESHOLD, 1.5, r"is 1\.5; it must be from 0 to 1"),
        (THRESHOLD, -0.1, r"is -0\.1; it must be from 0 to 1"),
        (THRESHOLD, math.nan, "is nan; it must be a number"),
        (THRESHOLD.replace("OBJECT_MASK", "OVERLAP"), 80.0, r"is 80\.0; it must be from 0 to 1"),
        ("INPUT.COPY_PASTE.PROBABILITY", 1.5, r"is 1\.5; it must be from 0 to 1"),
        ("INPUT.COPY_PASTE.MAX_SIZE", -1.0, r"is -1\.0; it must be from 0 to 32768"),
        ("INPUT.COPY_PASTE.COPIES", 101, "is 101; it must be from 0 to 100"),
        ("SOLVER.BASE_LR", math.inf, "is inf; it must be from 0 to"),
        ("SOLVER.MOMENTUM", -0.9, r"is -0\.9; it must be from 0 to 1"),
        ("SOLVER.BASE_LR", math.nan, "is nan; it must be a number"),
        ("MODEL.PIXEL_MEAN", [1.0, math.nan, 2.0], r"is \[1.0, nan, 2.0\]; it must be a number"),
    ],
)
def test_a_number_that_can_only_be_a_mistake_is_an_error(key, value, message):
    with pytest.raises(ValueError, match=rf"^command line: {key} {message}"):
        get_cfg().merge_from_list([key, value])


def test_values_that_were_assigned_are_checked_too():
    cfg = get_cfg()
    check_ranges(cfg)
    cfg.INPUT.MIN_SIZE_TEST = -5
    with pytest.raises(ValueError, match=f"config: {SIZE} is -5"):
        check_ranges(cfg)


def test_ranges_are_of_keys_that_exist():
    assert RANGES.keys() | NAMES.keys() <= DEFAULTS.keys()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["semantic", "panoptc"], r"\(semantic, panoptc\)"),
        (["semantic", "semantic"], r"\(semantic, semantic\)"),
        ([["semantic"], 3], r"\(\['semantic'\], 3\)"),
        (["semantic"] * 1000, "1000 names"),
    ],
)
def test_tasks_that_are_unknown_or_there_twice_are_an_error(value, shown):
    message = f"^command line: SOLVER.TASKS is {shown}; choose among semantic, instance, panoptic, each once$"
    with pytest.raises(ValueError, match=message):
        get_cfg().merge_from_list(["SOLVER.TASKS", value])


def test_tasks_may_be_typed_or_assigned():
    cfg = get_cfg()
    assert cfg.SOLVER.TASKS == ()
    cfg.merge_from_list(["SOLVER.TASKS", "('panoptic', 'semantic')"])
    assert cfg.SOLVER.TASKS == ("panoptic", "semantic")
    check_ranges(cfg)
    assert NAMES["SOLVER.TASKS"] == TASKS


def test_a_huge_longer_side_switches_the_limit_off():
    get_cfg().merge_from_list(["INPUT.MAX_SIZE_TEST", 10**9, SIZE, 0])
