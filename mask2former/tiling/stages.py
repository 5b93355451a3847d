"""What the predictions of an image's tiles become, for each task, as they are made.

Shapes: `H, W` the image's sides in pixels, `K` classes.
"""

from math import prod
from typing import Any, Protocol

import numpy as np

from mask2former.modeling.postprocessing.inference import InferenceOptions, exact_float32
from mask2former.modeling.postprocessing.instance import predict_instances
from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.modeling.predictions import ImagePrediction
from mask2former.structures import Instances
from mask2former.tiling.blending import Blender, best_class
from mask2former.tiling.grid import Grid
from mask2former.tiling.merging import Piece, as_instances, larger_than_tiles, merge, pieces_of
from mask2former.tiling.panoptic import paint, stuff_code, sure_stuff, sure_things
from mask2former.utils.memory import IN_MEMORY, new_array


class Stage(Protocol):
    """Interface of a task: it gets the tiles row by row, then the whole image."""

    def __init__(self, grid: Grid, options: InferenceOptions, num_classes: int) -> None:
        """Begin an image."""

    def add(self, row: int, column: int, prediction: ImagePrediction) -> None:
        """Take the prediction of a tile."""

    def finish_row(self, row: int) -> None:
        """Do what can be done after a row of tiles."""

    def add_whole(self, prediction: ImagePrediction) -> None:
        """Take the prediction of the whole image."""

    def results(self) -> dict[str, Any]:
        """Return the task's entry of a compact result, with arrays for maps."""
        ...


class SemanticStage:
    """The class of highest weighted mean score. The whole image does not count: its scores are blurred."""

    def __init__(self, grid: Grid, options: InferenceOptions, num_classes: int) -> None:
        large = 4 * prod(grid.size) > IN_MEMORY
        self.labels = new_array(grid.size, np.min_scalar_type(num_classes) if large else np.int32)
        self.blender = Blender(
            grid,
            self.labels,
            best_class,
            resize_first=options.resizes_logits,
            memory_budget=options.memory_budget,
        )

    def add(self, row: int, column: int, prediction: ImagePrediction) -> None:
        """Take the prediction of a tile."""
        self.blender.add(row, column, prediction)

    def finish_row(self, row: int) -> None:
        """Make the labels that no later row of tiles changes."""
        self.blender.finish_row(row)

    def add_whole(self, prediction: ImagePrediction) -> None:
        """Leave the prediction of the whole image out."""

    def results(self) -> dict[str, Any]:
        """Return "label_map" (H, W)."""
        return {"label_map": self.labels}


class _Objects:
    """Pieces of objects: all those of tiles, and those of the whole image that no tile holds whole."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.pieces: list[Piece] = []

    def add(self, instances: Instances, row: int, column: int) -> None:
        """Add the instances of a tile."""
        self.pieces += pieces_of(instances, self.grid.tile(row, column), self.grid.size)

    def add_whole(self, instances: Instances) -> None:
        """Add those instances of the whole image that no tile holds whole."""
        whole = Tile(*map(range, self.grid.size))
        self.pieces += larger_than_tiles(pieces_of(instances, whole, self.grid.size), self.grid)


class InstanceStage:
    """Instances of tiles, merged."""

    def __init__(self, grid: Grid, options: InferenceOptions, num_classes: int) -> None:
        self.options, self.objects = options, _Objects(grid)

    def add(self, row: int, column: int, prediction: ImagePrediction) -> None:
        """Take the prediction of a tile."""
        self.objects.add(self._found(prediction), row, column)

    def finish_row(self, row: int) -> None:
        """Wait for all tiles."""

    def add_whole(self, prediction: ImagePrediction) -> None:
        """Take what is larger than a tile."""
        self.objects.add_whole(self._found(prediction))

    def _found(self, prediction: ImagePrediction) -> Instances:
        options = self.options
        with exact_float32(prediction.mask_logits.device):
            return predict_instances(
                prediction,
                max_instances=options.max_instances,
                thing_ids=options.thing_ids if options.things_only else None,
                one_class_per_query=options.proposals,
                memory_budget=options.memory_budget,
            )

    def results(self) -> dict[str, Any]:
        """Return "instances", by decreasing score."""
        size = self.objects.grid.size
        return {"instances": as_instances(merge(self.objects.pieces, size), size)}


class PanopticStage:
    """Merged things over the stuff of highest weighted mean score."""

    def __init__(self, grid: Grid, options: InferenceOptions, num_classes: int) -> None:
        self.options, self.objects, self.num_classes = options, _Objects(grid), num_classes
        self.codes = new_array(grid.size, np.int32)
        self.blender = Blender(
            grid, self.codes, stuff_code, resize_first=True, memory_budget=options.memory_budget
        )

    def add(self, row: int, column: int, prediction: ImagePrediction) -> None:
        """Take the prediction of a tile."""
        self.blender.add(row, column, sure_stuff(prediction, self.options))
        self.objects.add(sure_things(prediction, self.options), row, column)

    def finish_row(self, row: int) -> None:
        """Make the stuff that no later row of tiles changes."""
        self.blender.finish_row(row)

    def add_whole(self, prediction: ImagePrediction) -> None:
        """Take the things that are larger than a tile."""
        self.objects.add_whole(sure_things(prediction, self.options))

    def results(self) -> dict[str, Any]:
        """Return "panoptic_seg": the map (H, W) int32 of segment ids, and the segments."""
        things = merge(self.objects.pieces, self.objects.grid.size)
        return {"panoptic_seg": (self.codes, paint(self.codes, things, self.num_classes, self.options))}


STAGES: dict[str, type[Stage]] = {
    "semantic": SemanticStage,
    "instance": InstanceStage,
    "panoptic": PanopticStage,
}
