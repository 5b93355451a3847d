"""The augmentations of each published recipe, with the options of a config."""

from functools import partial
from typing import Any

from mask2former.data.augmentation import (
    CROP_RULES,
    FLIP_AXES,
    SAMPLING_IS_RANGED,
    ZOOM_EDGES,
    ZOOM_MAX_SIZE,
    Augmentation,
    choice,
    pad_to,
    random_chain,
    random_color,
    random_crop,
    random_flip,
    random_scale,
    random_shortest_edge,
    random_window,
)


def large_scale_jitter(cfg: Any) -> list[Augmentation]:
    """Return COCO's recipe: flip, rescale, crop, pad to INPUT.IMAGE_SIZE (Ghiasi et al., 2021).

    With INPUT.COLOR_AUG_SSD crops are recolored before they are padded.
    """
    size = cfg.INPUT.IMAGE_SIZE
    return [
        flip_step(cfg),
        partial(random_scale, size=size, min_scale=cfg.INPUT.MIN_SCALE, max_scale=cfg.INPUT.MAX_SCALE),
        partial(random_window, size=size),
        *color_steps(cfg),
        pad_step(cfg, size),
    ]


def shortest_edge_crop(cfg: Any) -> list[Augmentation]:
    """Return the recipe of the other datasets: resize the shorter side, crop, recolor, flip, pad."""
    steps = [shortest_edge_step(cfg)]
    if cfg.INPUT.CROP.ENABLED:
        steps.append(crop_step(cfg))
    steps += [*color_steps(cfg), flip_step(cfg)]
    if cfg.INPUT.SIZE_DIVISIBILITY > 0:  # despite its name the side of a square that images are padded to
        steps.append(pad_step(cfg, cfg.INPUT.SIZE_DIVISIBILITY))
    return steps


def zoom_and_crop(cfg: Any) -> list[Augmentation]:
    """Return DETR's recipe: flip, enlarge half of the images by a crop, resize the shorter side.

    Without INPUT.CROP.ENABLED no image is cropped. Random numbers are drawn in this order: flip, whether to
    crop and, if so, the side to resize to, the crop's height, width, top and left; at last the shorter side
    (Carion et al., 2020, "random crop augmentation").
    """
    steps = [flip_step(cfg)]
    if cfg.INPUT.CROP.ENABLED:
        zoom = partial(random_shortest_edge, sizes=ZOOM_EDGES, max_size=ZOOM_MAX_SIZE)
        steps.append(partial(random_chain, augmentations=(zoom, crop_step(cfg))))
    return [*steps, shortest_edge_step(cfg)]


def flip_step(cfg: Any) -> Augmentation:
    """Return the random flip of INPUT.RANDOM_FLIP."""
    return partial(random_flip, axis=choice("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP, FLIP_AXES))


def color_steps(cfg: Any) -> list[Augmentation]:
    """Return the color jitter of INPUT.COLOR_AUG_SSD, if that is on."""
    return [random_color] if cfg.INPUT.COLOR_AUG_SSD else []


def pad_step(cfg: Any, size: int) -> Augmentation:
    """Return the padding to `size` x `size` with INPUT.PAD_LEVEL."""
    return partial(pad_to, size=size, level=cfg.INPUT.PAD_LEVEL)


def shortest_edge_step(cfg: Any) -> Augmentation:
    """Return the random resizing of INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TRAIN_SAMPLING."""
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    ranged = choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", sampling, SAMPLING_IS_RANGED)
    if ranged and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN must be two sizes for sampling '{sampling}', not {tuple(sizes)}"
        )
    return partial(random_shortest_edge, sizes=tuple(sizes), max_size=cfg.INPUT.MAX_SIZE_TRAIN, ranged=ranged)


def crop_step(cfg: Any) -> Augmentation:
    """Return the random crop of INPUT.CROP."""
    crop = cfg.INPUT.CROP
    what, fits = choice("INPUT.CROP.TYPE", crop.TYPE, CROP_RULES)
    if len(crop.SIZE) != 2 or not fits(*crop.SIZE):
        raise ValueError(f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}; a '{crop.TYPE}' crop takes {what}")
    return partial(
        random_crop, kind=crop.TYPE, size=tuple(crop.SIZE), max_category_area=crop.SINGLE_CATEGORY_MAX_AREA
    )
