"""A model that predicts an image tile by tile (TEST.TILE).

A tile is predicted as an image of its own: it is resized as INPUT.MIN_SIZE_TEST says, and what is found is
merged. The whole image is predicted once more, for objects that no tile holds whole.

Shapes: `H, W` the image's sides in pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn
from tqdm import tqdm

from mask2former.config import with_values
from mask2former.data.mapper import build_tile_mapper
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.postprocessing.inference import best_query_score
from mask2former.modeling.predictions import ImagePrediction
from mask2former.tiling.grid import Grid, make_grid
from mask2former.tiling.stages import STAGES
from mask2former.utils.memory import Array, release_pages

SECONDS_BEFORE_PROGRESS = 2.0
REDUCED_PIXELS = 2**26  # larger images are reduced by a whole factor before they are resized


def check_tiling(cfg: CfgNode) -> None:
    """Refuse TEST.TILE where it is undefined.

    Raises:
        ValueError: a tile is smaller than what images are padded to, or TEST.AUG is on too.
    """
    tile, divisor = cfg.TEST.TILE.SIZE, cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
    if not tile:
        return
    if tile < divisor:
        raise ValueError(
            f"TEST.TILE.SIZE (tile) is {tile} pixels; it must be at least {divisor}, "
            "MODEL.MASK_FORMER.SIZE_DIVISIBILITY, or 0 for prediction without tiles"
        )
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.TILE.SIZE (tile) and TEST.AUG.ENABLED exclude each other; type TEST.AUG.ENABLED False"
        )


def with_tiles(cfg: CfgNode, tile: int | None, overlap: float | None) -> CfgNode:
    """Return the config with TEST.TILE.SIZE and OVERLAP, as far as they are given.

    Raises:
        ValueError: a value is out of range or of a wrong type.
    """
    given = {"tile": ("TEST.TILE.SIZE", tile), "tile_overlap": ("TEST.TILE.OVERLAP", overlap)}
    for name, (key, value) in given.items():
        if value is not None:
            cfg = with_values(cfg, {key: value}, name)
    return cfg


class TiledModel:
    """A model whose results are those of overlapping tiles, merged.

    Args:
        cfg: the config, with TEST.TILE.
        model: the model.
        progress: show how many tiles are done, if it takes long.

    Raises:
        ValueError: as `check_tiling`; or the model has rules of its own for results, as DETR.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, *, progress: bool = False) -> None:
        check_tiling(cfg)
        if not isinstance(model, MaskFormer) or type(model).predict is not MaskFormer.predict:
            raise ValueError(
                f"TEST.TILE.SIZE (tile) is {cfg.TEST.TILE.SIZE}, but results of a {type(model).__name__} "
                "cannot be merged; type TEST.TILE.SIZE 0"
            )
        self.model, self.progress = model, progress
        self.tile, self.overlap = cfg.TEST.TILE.SIZE, cfg.TEST.TILE.OVERLAP
        self.mapper = build_tile_mapper(cfg)

    def predict(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the compact results of each image, as `MaskFormer.predict`; inputs have their own size."""
        return [self._predict(inputs["image"].permute(1, 2, 0).numpy()) for inputs in batched_inputs]

    def _predict(self, image: Array) -> dict[str, Any]:
        result = self.predict_image(image)
        if "label_map" in result:
            result["label_map"] = torch.as_tensor(result["label_map"])
        if "panoptic_seg" in result:
            ids, segments = result["panoptic_seg"]
            result["panoptic_seg"] = torch.as_tensor(ids), segments
        return result

    @torch.no_grad()
    def predict_image(self, image: Array) -> dict[str, Any]:
        """Return the compact results of an image (H, W, 3) uint8 in the model's order of channels.

        Maps are arrays; large ones lie in files (`new_array`). An image that one tile covers is predicted as
        without tiles.
        """
        grid = make_grid((image.shape[0], image.shape[1]), self.tile, self.overlap)
        if grid.number == 1:
            return self.model.predict([self.mapper.inputs(image)], compact=True)[0]
        options = self.model.inference
        stages = {task: STAGES[task](grid, options, self.model.num_classes) for task in options.tasks}
        best = torch.zeros(())
        for row, column, prediction in self._predictions(image, grid):
            best = best.maximum(best_query_score(prediction, options).cpu())
            for task, stage in stages.items():
                stage.add(row, column, prediction.of_task(task))
                if column == len(grid.columns.starts) - 1:
                    stage.finish_row(row)
        whole = self._predict_whole(image)
        for task, stage in stages.items():
            stage.add_whole(whole.of_task(task))
        results: dict[str, Any] = {"best_query_score": best}
        for stage in stages.values():
            results |= stage.results()
        return results

    def _predictions(self, image: Array, grid: Grid) -> Iterator[tuple[int, int, ImagePrediction]]:
        """Yield row, column and prediction of each tile."""
        places = product(range(len(grid.rows.starts)), range(len(grid.columns.starts)))
        for row, column in tqdm(
            places,
            total=grid.number,
            unit="tile",
            leave=False,
            disable=not self.progress,
            delay=SECONDS_BEFORE_PROGRESS,
        ):
            rows, columns = grid.tile(row, column)
            tile = image[rows.start : rows.stop, columns.start : columns.stop]
            yield row, column, self._predict_tile(tile, tile.shape[:2])
            release_pages(image)

    def _predict_tile(self, image: Array, size: tuple[int, ...]) -> ImagePrediction:
        """Return the prediction of an image (h, w, 3) for an output of `size`."""
        inputs = self.mapper.inputs(image)
        inputs["height"], inputs["width"] = size
        return self.model.predict_images([inputs])[0]

    def _predict_whole(self, image: Array) -> ImagePrediction:
        """Return the prediction of the whole image, for an output of its size."""
        return self._predict_tile(reduced(image), image.shape[:2])


def reduced(image: Array) -> Array:
    """Return an image (H, W, 3) of at most REDUCED_PIXELS: of squares of pixels the mean."""
    height, width = image.shape[:2]
    factor = 1
    while (height // factor) * (width // factor) > REDUCED_PIXELS:
        factor += 1
    if factor == 1:
        return image
    small = np.empty((height // factor, width // factor, 3), np.uint8)
    for row in range(len(small)):
        band = image[row * factor : (row + 1) * factor, : small.shape[1] * factor]
        small[row] = band.reshape(factor, -1, factor, 3).mean((0, 2)).round()
        release_pages(image)
    return small
