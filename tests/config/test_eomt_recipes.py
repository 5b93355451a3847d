"""EoMT's configs against the numbers of the authors' own, which count training in steps."""

import pytest

from mask2former.config import load_config
from mask2former.modeling.eomt.options import build_annealing

ADE20K, CITYSCAPES = "ade20k/semantic-segmentation/eomt", "cityscapes/semantic-segmentation/eomt"
PANOPTIC, INSTANCE = "coco/panoptic-segmentation/eomt", "coco/instance-segmentation/eomt"
SLOW, FAST = (1e-4, 500, 1000), (2e-4, 2000, 3000)  # rate, warm-up of the rest and of the vision transformer
COCO_ENDS = [29564, 44346, 59128, 73910]
# Config -> (rate and warm-ups, steps, steps at which the blocks' masks begin and end to be removed)
RECIPES = {
    f"{PANOPTIC}/eomt_dinov2_large_bs16_12ep": (SLOW, 88692, [14782, 29564, 44346, 59128], COCO_ENDS),
    f"{PANOPTIC}/eomt_dinov2_base_bs16_24ep": (
        SLOW,
        177384,
        [29564, 73910, 118256],
        [59128, 103474, 147820],
    ),
    f"{PANOPTIC}/eomt_dinov2_giant_bs16_12ep": (
        SLOW,
        88692,
        [14782, 25869, 36955, 48042, 59128],
        [29564, 40651, 51737, 62824, 73910],
    ),
    f"{PANOPTIC}/eomt_dinov3_large_bs16_12ep": (
        FAST,
        88692,
        [0, 29564, 44346, 59128],
        [3000, 44346, 59128, 73910],
    ),
    f"{PANOPTIC}/eomt_dinov3_small_bs16_24ep": (FAST, 177384, [0, 73910, 118256], [3000, 103474, 147820]),
    f"{PANOPTIC}/eomt_dinov3_base_bs16_24ep": (FAST, 177384, [0, 73910, 118256], [3000, 103474, 147820]),
    f"{INSTANCE}/eomt_dinov2_large_bs16_12ep": (SLOW, 88692, [14782, 29564, 44346, 59128], COCO_ENDS),
    f"{INSTANCE}/eomt_dinov3_large_bs16_12ep_res1280": (
        FAST,
        88692,
        [14782, 29564, 44346, 59128],
        COCO_ENDS,
    ),
    f"{ADE20K}/eomt_dinov2_large_bs16_31ep": (
        SLOW,
        39120,
        [6520, 13040, 19560, 26080],
        [13040, 19560, 26080, 32600],
    ),
    f"{ADE20K}/eomt_dinov3_large_bs16_16ep": (
        FAST,
        20208,
        [0, 6520, 9780, 13040],
        [3000, 9780, 13040, 16300],
    ),
    f"{CITYSCAPES}/eomt_dinov2_large_bs16_107ep": (
        SLOW,
        19902,
        [3317, 6634, 9951, 13268],
        [6634, 9951, 13268, 16585],
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_rates_warm_ups_and_the_steps_of_attention_masks_are_the_published_ones(name):
    rates, steps, starts, ends = RECIPES[name]
    cfg = load_config(f"{name}.yaml")
    solver = cfg.SOLVER
    assert rates == (solver.BASE_LR, solver.WARMUP_ITERS, solver.VIT_WARMUP_ITERS)
    assert solver.WARMUP_FACTOR == 0 and solver.POLY_LR_POWER == 0.9
    assert solver.LR_SCHEDULER_NAME == "WarmupThenPolyLR" and steps == solver.MAX_ITER
    on_dinov3 = "dinov3" in name
    assert (cfg.MODEL.EOMT.NUM_BLOCKS if on_dinov3 else 0) == solver.FULL_RATE_BLOCKS
    assert (2.0 if on_dinov3 else 1.0) == cfg.MODEL.VIT.ROPE_RESCALE
    schedule = build_annealing(cfg)
    assert list(schedule.starts) == pytest.approx(starts, abs=1)  # the shares of a config have 7 digits
    assert list(schedule.ends) == pytest.approx(ends, abs=1)


@pytest.mark.parametrize(
    ("name", "mapper", "size", "scales", "recolored"),
    [
        (f"{PANOPTIC}/eomt_dinov2_large_bs16_12ep", "coco_panoptic_lsj", 640, (0.1, 2), False),
        (f"{INSTANCE}/eomt_dinov2_large_bs16_12ep_res1280", "coco_instance_lsj", 1280, (0.1, 2), False),
        (
            "ade20k/panoptic-segmentation/eomt/eomt_dinov2_large_bs16_31ep",
            "coco_panoptic_lsj",
            640,
            (0.1, 2),
            True,
        ),
        (f"{ADE20K}/eomt_dinov2_large_bs16_31ep", "semantic_lsj", 512, (0.5, 2), True),
        (f"{CITYSCAPES}/eomt_dinov2_large_bs16_107ep", "semantic_lsj", 1024, (0.5, 2), True),
    ],
)
def test_crops_and_colors_of_training_are_the_published_ones(name, mapper, size, scales, recolored):
    keys = load_config(f"{name}.yaml").INPUT
    assert (mapper, size) == (keys.DATASET_MAPPER_NAME, keys.IMAGE_SIZE)
    assert scales == (keys.MIN_SCALE, keys.MAX_SCALE)
    assert recolored == keys.COLOR_AUG_SSD and keys.PAD_LEVEL == 0 and keys.EMPTY_REDRAWS > 0
