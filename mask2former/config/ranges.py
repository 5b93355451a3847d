"""Ranges of numbers in a config, so wide that only mistakes are outside of them, and names in lists.

What a module needs more exactly, it checks itself.
"""

import math
from collections.abc import Sequence
from typing import Any

from mask2former.config.defaults import DEFAULTS

_SIDE = 32_768  # pixels; memory for a larger image would be that of no machine
_CHANNELS = 65_536
_LAYERS = 1_000
_SHARE = (0, 1)
_FACTOR = (0, 1e9)

# Key -> least and greatest value of the number, or of each number of the list. MAX_SIZE_* have no greatest:
# a huge value is how users switch them off. A MIN_SIZE_TEST of 0 keeps an image's size.
RANGES: dict[str, tuple[float, float]] = {
    "INPUT.MIN_SIZE_TRAIN": (0, _SIDE),
    "INPUT.MIN_SIZE_TEST": (0, _SIDE),
    "INPUT.MAX_SIZE_TRAIN": (1, math.inf),
    "INPUT.MAX_SIZE_TEST": (1, math.inf),
    "INPUT.SAMPLING_FRAME_NUM": (1, 1_024),
    "INPUT.SAMPLING_FRAME_RANGE": (0, math.inf),
    "INPUT.SIZE_DIVISIBILITY": (-1, _SIDE),
    "INPUT.PAD_LEVEL": (0, 255),
    "INPUT.EMPTY_REDRAWS": (0, 1_000),
    "INPUT.IMAGE_SIZE": (1, _SIDE),
    "INPUT.MAX_MEGAPIXELS": (0, math.inf),
    "INPUT.MIN_SCALE": (0, 100),
    "INPUT.MAX_SCALE": (0, 100),
    "INPUT.COPY_PASTE.PROBABILITY": _SHARE,
    "INPUT.COPY_PASTE.MAX_SIZE": (0, _SIDE),
    "INPUT.COPY_PASTE.COPIES": (0, 100),
    "TEST.AUG.MIN_SIZES": (0, _SIDE),
    "TEST.AUG.MAX_SIZE": (1, math.inf),
    "TEST.TILE.SIZE": (0, _SIDE),
    "TEST.TILE.OVERLAP": (0, 0.9),
    "MODEL.RESNETS.NUM_GROUPS": (1, _CHANNELS),
    "MODEL.RESNETS.WIDTH_PER_GROUP": (1, _CHANNELS),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": (1, _CHANNELS),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": (1, _CHANNELS),
    "MODEL.RESNETS.RES5_STRIDE": (1, 2),
    "MODEL.SWIN.PATCH_SIZE": (-math.inf, 1_024),
    "MODEL.SWIN.EMBED_DIM": (1, _CHANNELS),
    "MODEL.SWIN.DEPTHS": (0, _LAYERS),
    "MODEL.SWIN.NUM_HEADS": (1, _CHANNELS),
    "MODEL.SWIN.WINDOW_SIZE": (-math.inf, 64),  # a table of its fourth power is computed
    "MODEL.SWIN.MLP_RATIO": (0, 1_000),
    "MODEL.SWIN.DROP_RATE": _SHARE,
    "MODEL.SWIN.ATTN_DROP_RATE": _SHARE,
    "MODEL.SWIN.DROP_PATH_RATE": _SHARE,
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": (1, _SIDE),
    "MODEL.VIT.PATCH_SIZE": (1, 1_024),
    "MODEL.VIT.EMBED_DIM": (1, _CHANNELS),
    "MODEL.VIT.DEPTH": (1, _LAYERS),
    "MODEL.VIT.NUM_HEADS": (1, _CHANNELS),
    "MODEL.VIT.MLP_RATIO": (0, 1_000),
    "MODEL.VIT.REGISTERS": (0, 1_024),
    "MODEL.VIT.POSITION_GRID": (1, 1_024),
    "MODEL.VIT.ROPE_BASE": (1, _FACTOR[1]),
    "MODEL.VIT.ROPE_RESCALE": (1, 1_000),
    "MODEL.VIT.WINDOW_SIZE": (0, 1_024),
    "MODEL.VIT.GLOBAL_BLOCKS": (0, _LAYERS),
    "MODEL.VIT.LAYER_SCALE": _SHARE,
    "MODEL.VIT.NORM_EPS": _SHARE,
    "MODEL.VIT.DROP_PATH_RATE": _SHARE,
    "MODEL.VIT_ADAPTER.NUM_HEADS": (1, _CHANNELS),
    "MODEL.VIT_ADAPTER.VALUE_RATIO": (0, 16),
    "MODEL.EOMT.NUM_BLOCKS": (1, _LAYERS),
    "MODEL.EOMT.ANNEALING_START": _SHARE,
    "MODEL.EOMT.ANNEALING_END": _SHARE,
    "MODEL.EOMT.ANNEALING_POWER": _FACTOR,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (-math.inf, 100_000),
    "MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT": _FACTOR,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": (1, _CHANNELS),
    "MODEL.SEM_SEG_HEAD.MASK_DIM": (1, _CHANNELS),
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": (0, _LAYERS),
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": (1, _CHANNELS),
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": (-math.inf, 10_000),
    "MODEL.MASK_FORMER.HIDDEN_DIM": (1, _CHANNELS),
    "MODEL.MASK_FORMER.NHEADS": (1, _CHANNELS),
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": (1, _CHANNELS),
    "MODEL.MASK_FORMER.ENC_LAYERS": (0, _LAYERS),
    "MODEL.MASK_FORMER.DEC_LAYERS": (-math.inf, _LAYERS),
    "MODEL.MASK_FORMER.DROPOUT": _SHARE,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": _FACTOR,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": _FACTOR,
    "MODEL.MASK_FORMER.DICE_WEIGHT": _FACTOR,
    "MODEL.MASK_FORMER.MASK_WEIGHT": _FACTOR,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": (-math.inf, _SIDE),
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": (-math.inf, 10_000_000),
    "MODEL.MASK_FORMER.OBJECT_POINT_RATIO": _SHARE,
    "MODEL.MASK_FORMER.DECODER.FINE_LAYERS": (0, _LAYERS),
    "MODEL.MASK_FORMER.DECODER.PILOT_GROUPS": (0, 100),
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": _SHARE,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": _SHARE,
    "MODEL.MASK_FORMER.TEST.MEMORY_BUDGET_MB": (1, math.inf),
    "MODEL.KNET.RANK_WEIGHT": _FACTOR,
    "MODEL.KNET.SEG_WEIGHT": _FACTOR,
    "MODEL.DETR.L1_WEIGHT": _FACTOR,
    "MODEL.DETR.GIOU_WEIGHT": _FACTOR,
    "MODEL.DETR.CATEGORY_IDS": (0, 100_000),
    "MODEL.DETR.NUM_IDS": (0, 100_000),
    "DATALOADER.NUM_WORKERS": (0, 1_024),
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "SOLVER.BASE_LR": _FACTOR,
    "SOLVER.BACKBONE_MULTIPLIER": _FACTOR,
    "SOLVER.LAYER_DECAY": _SHARE,
    "SOLVER.FULL_RATE_BLOCKS": (0, _LAYERS),
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WEIGHT_DECAY": _FACTOR,
    "SOLVER.WEIGHT_DECAY_NORM": _FACTOR,
    "SOLVER.WEIGHT_DECAY_EMBED": _FACTOR,
    "SOLVER.GAMMA": _FACTOR,
    "SOLVER.TASK_SHARES": _FACTOR,
    "SOLVER.WARMUP_FACTOR": _FACTOR,
    "SOLVER.VIT_WARMUP_ITERS": (0, math.inf),
    "SOLVER.EMA_DECAY": (0, 0.999999),
    "SOLVER.EARLY_STOPPING": (0, math.inf),
    "TEST.EVAL_PERIOD": (0, math.inf),
}

# Key -> what its list may name, each once
NAMES: dict[str, tuple[str, ...]] = {"SOLVER.TASKS": ("semantic", "instance", "panoptic")}


def check_range(key: str, value: Any, source: str) -> None:
    """Check a number, or each number of a list; or a list of names.

    Raises:
        ValueError: a number is NaN, or outside of the key's range; or a name is unknown, or there twice.
    """
    if key in NAMES:
        _check_names(key, value, source)
    low, high = RANGES.get(key, (-math.inf, math.inf))
    for number in value if isinstance(value, (list, tuple)) else (value,):
        if not isinstance(number, (int, float)):
            continue
        if number != number:
            raise ValueError(f"{source}: {key} is {value!r}; it must be a number")
        if not low <= number <= high:
            bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            bounds = f"at most {high}" if low == -math.inf else bounds
            shown = repr(value) if len(repr(value)) < 100 else f"{number} in a list"
            raise ValueError(f"{source}: {key} is {shown}; it must be {bounds}")


def _check_names(key: str, value: Sequence[Any], source: str) -> None:
    if len(set(map(str, value))) < len(value) or not set(map(str, value)) <= set(NAMES[key]):
        shown = f"({', '.join(map(str, value))})"
        shown = shown if len(shown) < 100 else f"{len(value)} names"
        raise ValueError(f"{source}: {key} is {shown}; choose among {', '.join(NAMES[key])}, each once")


def check_ranges(cfg: Any) -> None:
    """Check every number of a config, however it was set. Raises as `check_range`."""
    for key in DEFAULTS:
        node = cfg
        for part in key.split("."):
            node = node[part]
        check_range(key, node, "config")
