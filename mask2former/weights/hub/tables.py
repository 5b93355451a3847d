"""The forms of the tables of fields (`fields.py`) and of names (`names.py`)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

HEAD, QUERY = "MODEL.SEM_SEG_HEAD.", "MODEL.MASK_FORMER."


class Field(NamedTuple):
    """A field, the key that means the same, and the value of a file that leaves the field out."""

    hub: str
    key: str
    default: Any


LOSS_FIELDS = (  # of Mask2Former and EoMT
    Field("no_object_weight", f"{QUERY}NO_OBJECT_WEIGHT", 0.1),
    Field("class_weight", f"{QUERY}CLASS_WEIGHT", 2.0),
    Field("mask_weight", f"{QUERY}MASK_WEIGHT", 5.0),
    Field("dice_weight", f"{QUERY}DICE_WEIGHT", 5.0),
    Field("train_num_points", f"{QUERY}TRAIN_NUM_POINTS", 112 * 112),
    Field("oversample_ratio", f"{QUERY}OVERSAMPLE_RATIO", 3.0),
    Field("importance_sample_ratio", f"{QUERY}IMPORTANCE_SAMPLE_RATIO", 0.75),
)


class Table(NamedTuple):
    """Fields of a model or a backbone, and the values that other fields and keys must have for it.

    A file that leaves out a field of `theirs` means this value. `implied` are our keys for how transformers
    trains it, which may have other values.
    """

    fields: tuple[Field, ...]
    theirs: dict[str, Any]
    ours: dict[str, Any]
    implied: dict[str, Any]


class Row(NamedTuple):
    """Two templates of the same names."""

    hub: str
    ours: str


class Names(NamedTuple):
    """The names of a model, on any backbone.

    `unused` starts the names of a norm of Swin's classifier, which is as wide as the tensors that `last_norm`
    starts: transformers has it in files, and reports if it is missing, but no backbone reads it. `positions`
    is our name of a tensor (1, P, C) that transformers has as (P, C). An empty name is none.
    """

    rows: tuple[Row, ...]
    unused: str = ""
    last_norm: str = ""
    positions: str = ""


def below(hub: str, ours: str, rows: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
    """Return rows with a prefix on each side."""
    return tuple(Row(hub + theirs, ours + name) for theirs, name in rows)
