"""Label maps from the predictions of overlapping tiles: the class of highest weighted mean score.

A row of the image's tiles is predicted at a time. The labels of a pixel follow as soon as all tiles that
cover it are there; then these predictions are dropped.

Shapes: `K` classes, `Q` queries, `h, w` the sides of a tile's mask logits, `H, W` the image's, `R, C` those
of a part of it, in pixels.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mask2former.modeling.postprocessing.inference import exact_float32
from mask2former.modeling.postprocessing.semantic import Scorer, TileScores, tile_scorer
from mask2former.modeling.postprocessing.tiles import Tile, contenders, over_tiles, tiles_within
from mask2former.modeling.predictions import ImagePrediction
from mask2former.tiling.grid import Grid
from mask2former.utils.label_maps import Array
from mask2former.utils.memory import new_array, release_pages

KEPT_IN_MEMORY = 2**28  # bytes of mask logits of the tiles that wait for their neighbors

# From scores (k, R, C) of k classes, these classes (k,), and the predictions they are of, to labels (R, C)
Choice = Callable[[Tensor, Tensor, Sequence[ImagePrediction]], Tensor]


class Placed(NamedTuple):
    """A tile's prediction, its weights (s,) along its rows and columns, and the file of its mask logits."""

    place: Tile
    prediction: ImagePrediction
    weights: tuple[Tensor, Tensor]
    file: Array | None

    def inside(self, part: Tile) -> Tile:
        """Return where a part of the image lies in the tile."""
        return Tile(
            *(
                range(span.start - own.start, span.stop - own.start)
                for span, own in zip(part, self.place, strict=True)
            )
        )

    def window(self, part: Tile) -> Tensor:
        """Return the tile's weights (R, C) in a part of the image."""
        rows, columns = (
            weights[span.start : span.stop]
            for weights, span in zip(self.weights, self.inside(part), strict=True)
        )
        return rows[:, None] * columns


class Blender:
    """Label map (H, W) of an image, made of the predictions of its tiles.

    Args:
        grid: the tiles.
        labels: the map to fill.
        choose: what makes labels of scores.
        resize_first, memory_budget: as in `InferenceOptions`.
    """

    def __init__(
        self, grid: Grid, labels: Array, choose: Choice, *, resize_first: bool, memory_budget: int
    ) -> None:
        self.grid, self.labels, self.choose = grid, labels, choose
        self.resize_first, self.memory_budget = resize_first, memory_budget
        self.waiting: dict[tuple[int, int], Placed] = {}

    def add(self, row: int, column: int, prediction: ImagePrediction) -> None:
        """Take the prediction of a tile; those of a row come after those of the rows above."""
        weights = self.grid.rows.weights(row), self.grid.columns.weights(column)
        prediction, file = self._kept(prediction)
        self.waiting[row, column] = Placed(self.grid.tile(row, column), prediction, weights, file)

    def _kept(self, prediction: ImagePrediction) -> tuple[ImagePrediction, Array | None]:
        """Return the prediction with its logits in a file, if a row of such tiles would fill the memory."""
        logits = prediction.mask_logits
        if logits.nbytes * len(self.grid.columns.starts) <= KEPT_IN_MEMORY:
            return prediction, None
        file = new_array(tuple(logits.shape), np.float32, in_memory=0)
        file[:] = logits.cpu().numpy()
        release_pages(file)
        return prediction._replace(mask_logits=torch.from_numpy(file)), file

    def finish_row(self, row: int) -> None:
        """Make the labels that no later row of tiles changes, and drop predictions that are not needed."""
        intervals = self.grid.rows.intervals()
        finished = [interval for interval in intervals if interval.tiles[-1] == row]
        for rows, columns in product(finished, self.grid.columns.intervals()):
            parts = [self.waiting[key] for key in product(rows.tiles, columns.tiles)]
            self._fill(Tile(rows.span, columns.span), parts)
        needed = {tile for interval in intervals if interval.tiles[-1] > row for tile in interval.tiles}
        self.waiting = {key: part for key, part in self.waiting.items() if key[0] in needed}
        release_pages(self.labels)

    def _fill(self, cell: Tile, parts: Sequence[Placed]) -> None:
        """Make the labels of a part of the image that the tiles `parts` cover."""
        predictions = [part.prediction for part in parts]
        device = predictions[0].probabilities.device
        score = blended(parts, self.resize_first, device)
        numbers = sum(sum(prediction.probabilities.shape) for prediction in predictions)
        top, left = cell.rows.start, cell.columns.start

        def fill(tile: Tile) -> None:
            rows, columns = (
                range(span.start + first, span.stop + first)
                for span, first in zip(tile, (top, left), strict=True)
            )
            part = Tile(rows, columns)
            scores = score(part)
            classes = contenders(scores.lower, scores.upper).nonzero()[:, 0]
            labels = self.choose(scores.compute(classes), classes, predictions)
            self.labels[rows.start : rows.stop, columns.start : columns.stop] = labels.cpu().numpy()

        size = len(cell.rows), len(cell.columns)
        with exact_float32(device):
            over_tiles(fill, tiles_within(self.memory_budget, size, numbers, device))
        for part in parts:
            if part.file is not None:
                release_pages(part.file)


def blended(parts: Sequence[Placed], resize_first: bool, device: torch.device) -> Scorer:
    """Return the function that computes the weighted mean of the scores of tiles, in a part of the image."""
    scorers = [
        tile_scorer(
            part.prediction._replace(mask_logits=part.prediction.mask_logits.to(device)), resize_first
        )
        for part in parts
    ]

    def score(tile: Tile) -> TileScores:
        scores = [scorer(part.inside(tile)) for scorer, part in zip(scorers, parts, strict=True)]
        if len(parts) == 1:
            return scores[0]
        windows = [part.window(tile).to(device) for part in parts]
        # A mean lies between the least and the greatest of the scores
        lower = torch.stack([each.lower.flatten(1).amin(1) for each in scores]).amin(0)
        upper = torch.stack([each.upper.flatten(1).amax(1) for each in scores]).amax(0)

        def compute(classes: Tensor) -> Tensor:
            means = (each.compute(classes).mul_(window) for each, window in zip(scores, windows, strict=True))
            return reduce(Tensor.add_, means)

        return TileScores(lower[:, None], upper[:, None], compute)

    return score


def best_class(scores: Tensor, classes: Tensor, _: Sequence[ImagePrediction]) -> Tensor:
    """Choose the class of highest score."""
    return classes[scores.max(0).indices]
