"""Merging of objects across tiles: what several tiles see of one object becomes one mask.

A mask that reaches an inner border of its tile is cut. It gives way to a neighbor's whole mask, or is united
with a cut one.

Shapes: `H, W` the image's sides in pixels, `N` instances, `m` runs of a mask.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from mask2former.modeling.postprocessing.tiles import Tile
from mask2former.structures import Boxes, Instances, RunLengthMasks
from mask2former.tiling import runs as run_lengths
from mask2former.tiling.grid import Axis, Grid
from mask2former.utils.label_maps import Array

AGREEMENT = 0.5  # of two masks of one object
CREDIBLE = 0.5  # share of an object's score that a mask must have to change the object's

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive


class Piece(NamedTuple):
    """What one tile, or the pass over the whole image, sees of an object.

    Args:
        place: the tile.
        runs: (m, 2), as of `tiling.runs`.
        area: pixels of the mask.
        box: the mask's.
        score: from 0 to 1.
        label: class id.
        cuts: sides of `box`, 0 to 3, that lie on an inner border of the tile.
    """

    place: Tile
    runs: Array
    area: int
    box: Box
    score: float
    label: int
    cuts: frozenset[int]


@dataclass
class Merged:
    """An object, made of pieces of which the first has the best score.

    Args:
        parts: the runs of masks that the object's mask is the union of.
        box, label: as of a piece.
        score: the first piece's.
        open: sides of the box, and their positions, where the object may go on.
        places: the tiles of its pieces.
    """

    parts: list[Array]
    box: Box
    label: int
    score: float
    open: set[tuple[int, int]]
    places: set[Tile]

    @classmethod
    def of(cls, piece: Piece) -> "Merged":
        """Return the object that a piece is."""
        return cls([piece.runs], piece.box, piece.label, piece.score, _open(piece), {piece.place})

    def add(self, piece: Piece) -> None:
        """Add a piece, which changes the mask only if that is cut and the piece's score is credible."""
        self.places.add(piece.place)
        if not self.open or piece.score < CREDIBLE * self.score:
            return
        if not piece.cuts:
            self.parts, self.box, self.open = [piece.runs], piece.box, set()
            return
        self.parts.append(piece.runs)
        left, top, right, bottom = zip(self.box, piece.box, strict=True)
        self.box = min(left), min(top), max(right), max(bottom)
        cuts = self.open | _open(piece)
        self.open = {(side, end) for side, end in cuts if self.box[side] == end}


def _open(piece: Piece) -> set[tuple[int, int]]:
    return {(side, piece.box[side]) for side in piece.cuts}


def pieces_of(instances: Instances, place: Tile, size: tuple[int, int]) -> Iterator[Piece]:
    """Yield the instances found in a tile of an image (H, W); empty masks are left out."""
    offset = np.array([place.columns.start, place.rows.start] * 2)
    boxes = instances.pred_boxes.cpu().numpy().astype(int) + offset
    scores, labels = instances.scores.tolist(), instances.pred_classes.tolist()
    for runs, box, score, label in zip(
        instances.pred_masks.runs, boxes.tolist(), scores, labels, strict=True
    ):
        if len(runs):
            placed = run_lengths.placed(runs.cpu().numpy(), place, size[0])
            area = run_lengths.area(placed)
            yield Piece(place, placed, area, tuple(box), score, label, frozenset(_cuts(box, place, size)))


def _cuts(box: Sequence[int], place: Tile, size: tuple[int, int]) -> Iterator[int]:
    """Yield the sides of a box that lie on an inner border of its tile."""
    borders = place.columns.start, place.rows.start, place.columns.stop, place.rows.stop
    outer = 0, 0, size[1], size[0]
    return (side for side in range(4) if box[side] == borders[side] != outer[side])


def larger_than_tiles(pieces: Iterable[Piece], grid: Grid) -> Iterator[Piece]:
    """Yield the pieces that no tile holds whole."""
    for piece in pieces:
        left, top, right, bottom = piece.box
        if not (_fits(grid.rows, top, bottom) and _fits(grid.columns, left, right)):
            yield piece


def _fits(axis: Axis, first: int, last: int) -> bool:
    """Return True if a tile holds the pixels `first` to `last` (exclusive), off its inner borders."""
    spans = [axis.span(index) for index in range(len(axis.starts))]
    end = spans[-1].stop
    return any(
        (span.start < first or span.start == first == 0) and (last < span.stop or last == span.stop == end)
        for span in spans
    )


def merge(pieces: Iterable[Piece], size: tuple[int, int]) -> list[Merged]:
    """Return the objects that pieces of an image (H, W) show, by decreasing score.

    Pieces are taken by decreasing score. Each is added to the object of its class that has the piece of
    another tile with which it agrees most (of several, the object of the best score), or is an object of its
    own. An object has one piece of each tile at most: what a tile tells apart stays apart.
    """
    pieces = sorted(pieces, key=lambda piece: -piece.score)
    neighbors = _neighbors({piece.place for piece in pieces})
    objects: list[Merged] = []
    seen: dict[tuple[Tile, int], list[tuple[Piece, Merged]]] = defaultdict(list)  # by tile and class
    for piece in pieces:
        best, found = (AGREEMENT, math.inf), None
        for other, owner in chain.from_iterable(seen[place, piece.label] for place in neighbors[piece.place]):
            if piece.place not in owner.places:
                fit = agreement(piece, other, size[0]), owner.score
                if fit > best:
                    best, found = fit, owner
        if found is None:
            objects.append(found := Merged.of(piece))
        else:
            found.add(piece)
        seen[piece.place, piece.label].append((piece, found))
    return objects


def _neighbors(places: set[Tile]) -> dict[Tile, list[Tile]]:
    """Return the other tiles that each tile overlaps, in order."""
    order = sorted(places, key=lambda place: (place.rows.start, place.columns.start, place.area))
    return {
        place: [other for other in order if other != place and _shared(place, other).area] for place in order
    }


def agreement(first: Piece, second: Piece, height: int) -> float:
    """Return how much two masks have in common, from 0 to 1.

    Two cut masks are compared in the region that both tiles look at, by their IoU: they share no more of a
    long object. Otherwise it is the share of the smaller mask.
    """
    if not _meet(first.box, second.box):
        return 0.0
    if not (first.cuts and second.cuts):
        return run_lengths.intersection(first.runs, second.runs) / min(first.area, second.area)
    shared = _shared(first.place, second.place)
    masks = [run_lengths.clipped(piece.runs, shared, height) for piece in (first, second)]
    common = run_lengths.intersection(*masks)
    return common / (sum(map(run_lengths.area, masks)) - common) if common else 0.0


def _meet(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _shared(first: Tile, second: Tile) -> Tile:
    """Return the rectangle that two tiles have in common; its area may be 0."""
    pairs = zip(first, second, strict=True)
    return Tile(*(range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs))


def as_instances(objects: Sequence[Merged], size: tuple[int, int]) -> Instances:
    """Return the objects of an image (H, W) as a prediction's instances."""
    merged = [torch.from_numpy(run_lengths.union(item.parts)) for item in objects]
    boxes = torch.tensor([item.box for item in objects], dtype=torch.float32).view(-1, 4)
    return Instances(
        size,
        pred_masks=RunLengthMasks(size, merged),
        pred_boxes=boxes.as_subclass(Boxes),
        scores=torch.tensor([item.score for item in objects], dtype=torch.float32),
        pred_classes=torch.tensor([item.label for item in objects], dtype=torch.int64),
    )
