"""What the parts of EoMT read from a config, and the schedule by which its attention masks are removed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ARCHITECTURE, BACKBONE_NAME, HEAD = "EoMT", "EomtBackbone", "EomtHead"
SQUARES = ("", "pad", "windows")


class Annealing(NamedTuple):
    """Steps between which each block's attention masks are removed, and the power of the decay."""

    starts: Sequence[int]
    ends: Sequence[int]
    power: float

    def probabilities(self, step: int) -> list[float]:
        """Return for each block the probability that a query is masked in training step `step`, from 0.

        It is 1 up to the block's start and 0 from its end on.
        """
        return [
            (1 - min(max((step - start) / max(end - start, 1), 0.0), 1.0)) ** self.power
            for start, end in zip(self.starts, self.ends, strict=True)
        ]


def build_annealing(cfg: Any) -> Annealing | None:
    """Return the schedule of a config of EoMT, or None if it has none.

    Raises:
        ValueError: a block lacks a start or an end, or they are no shares of training, in order.
    """
    eomt, steps = cfg.MODEL.EOMT, cfg.SOLVER.MAX_ITER
    starts, ends = tuple(eomt.ANNEALING_START), tuple(eomt.ANNEALING_END)
    if not starts and not ends:
        return None
    if not len(starts) == len(ends) == eomt.NUM_BLOCKS or not all(
        0 <= start < end <= 1 for start, end in zip(starts, ends, strict=True)
    ):
        raise ValueError(
            f"MODEL.EOMT.ANNEALING_START {list(starts)} and ANNEALING_END {list(ends)} must each have "
            f"NUM_BLOCKS = {eomt.NUM_BLOCKS} shares of training in [0, 1], ends after starts; or type both "
            "as ()"
        )
    first, last = ([round(share * steps) for share in shares] for shares in (starts, ends))
    return Annealing(first, last, eomt.ANNEALING_POWER)


def first_blocks(cfg: Any, part: str) -> int:
    """Return the number of blocks before the queries join.

    Raises:
        ValueError: there would be none; or `part`, a key and its value, is not in a config of EoMT.
    """
    architecture, depth, last = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.VIT.DEPTH, cfg.MODEL.EOMT.NUM_BLOCKS
    if architecture != ARCHITECTURE:
        raise ValueError(f"{part} needs MODEL.META_ARCHITECTURE {ARCHITECTURE}, not {architecture}")
    if not 1 <= last < depth:
        raise ValueError(
            f"MODEL.EOMT.NUM_BLOCKS is {last}; it must be at least 1 and less than MODEL.VIT.DEPTH, {depth}"
        )
    return depth - last
