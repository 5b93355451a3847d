"""From transformers' preprocessor_config.json to our keys, and back."""

from collections.abc import Mapping
from typing import Any

from mask2former.config import CfgNode
from mask2former.config.yaml_files import flatten
from mask2former.utils.messages import brief

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SHORTEST, LONGEST = 800, 1333
SIZE = {"shortest_edge": SHORTEST, "longest_edge": LONGEST}
DIVISOR = 32
BILINEAR = 2
PIXEL_DIGITS, UNIT_DIGITS = 4, 8  # files have 0.48500001430511475, which is 123.675 / 255 in float32
SQUARES, SPLIT = "MODEL.EOMT.SQUARES", "do_split_image"
EOMTS = {"windows": SPLIT, "pad": "do_pad"}  # value of SQUARES -> field of EoMT's processor
READ = (
    "size",
    "size_divisor",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    *EOMTS.values(),
)


def input_values(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys and their values for a preprocessor_config.json.

    Transformers computes `(pixels * rescale_factor - mean) / std`. Nothing here means the same as its fixed
    height and width, to which it squeezes images of any shape: they give no key (see `fixed_side`).

    Raises:
        ValueError: a field has a value of a wrong type.
    """
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
    normalize = processor.get("do_normalize", True)
    mean = processor.get("image_mean", IMAGENET_MEAN) if normalize else [0, 0, 0]
    std = processor.get("image_std", IMAGENET_STD) if normalize else [1, 1, 1]
    values: dict[str, Any] = {"MODEL.MASK_FORMER.SIZE_DIVISIBILITY": processor.get("size_divisor", DIVISOR)}
    for key, name, numbers in (("MEAN", "image_mean", mean), ("STD", "image_std", std)):
        try:
            values[f"MODEL.PIXEL_{key}"] = [round(number / factor, PIXEL_DIGITS) for number in numbers]
        except (TypeError, ArithmeticError) as error:
            raise ValueError(f"{name} is {brief(numbers)}, rescale_factor {brief(factor)}: {error}") from None
    size = _size(processor)
    if size.get("shortest_edge"):
        values["INPUT.MIN_SIZE_TEST"] = size["shortest_edge"]
        values["INPUT.MAX_SIZE_TEST"] = size.get("longest_edge") or LONGEST
    if SPLIT in processor:
        values[SQUARES] = next((word for word, name in EOMTS.items() if processor.get(name)), "")
    return values


def _size(processor: Mapping[str, Any]) -> Mapping[str, Any]:
    size = processor.get("size", SIZE)
    if isinstance(size, int):  # of the first versions: the shortest side, and a field for the longest
        return {"shortest_edge": size, "longest_edge": processor.get("max_size", LONGEST)}
    if not isinstance(size, Mapping):
        raise ValueError(f"size is {brief(size)}; it must have shortest_edge, or height and width")
    return size


def fixed_side(processor: Mapping[str, Any]) -> int | None:
    """Return the shorter side of the fixed size that images are squeezed to; None if they keep their shape.

    Raises:
        ValueError: the size has a wrong type.
    """
    size = _size(processor)
    sides = [size[name] for name in ("height", "width") if isinstance(size.get(name), int)]
    return None if size.get("shortest_edge") else min(sides, default=None)


def hub_processor(cfg: CfgNode, kind: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessor_config.json of a model, for the image processor `kind` of transformers.

    `saved` is the one that the model came with, whose other fields are kept; it may be empty.
    """
    size = {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST or SHORTEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST}
    divisor = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
    fresh = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "size_divisor": divisor if divisor > 0 else DIVISOR,
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, UNIT_DIGITS) for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [round(value / 255, UNIT_DIGITS) for value in cfg.MODEL.PIXEL_STD],
        "do_reduce_labels": False,
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }
    if cfg.MODEL.META_ARCHITECTURE == "EoMT":
        fresh |= {name: word == cfg.MODEL.EOMT.SQUARES for word, name in EOMTS.items()}
    if not saved:
        return fresh
    values = flatten(cfg)
    same = all(values[key] == value for key, value in input_values(saved).items())
    return dict(saved) if same else {**saved, **{name: fresh[name] for name in READ if name in fresh}}
