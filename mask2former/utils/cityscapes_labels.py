"""Cityscapes' table of labels, and the ids of its instance images, for datasets and metrics alike.

A pixel of an instance image holds the id of a label, or, if it belongs to a single object, that id * 1000
plus the number of the object.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from mask2former.utils.label_maps import Array

INSTANCES_PER_LABEL = 1000
LABELS_FILE = Path(__file__).with_suffix(".json")  # from cityscapesscripts; see NOTICE


@functools.cache
def label_table() -> list[dict[str, Any]]:
    """Return the rows of the table, one for each label.

    Keys: `id`, `trainId`, `name`, `category`, `categoryId`, `hasInstances`, `ignoreInEval`, `color`.
    """
    rows: list[dict[str, Any]] = json.loads(LABELS_FILE.read_text(encoding="utf-8"))
    return rows


def label_ids_of(instance_ids: Array) -> Array:
    """Return the label id of each instance id, int64 in the same shape."""
    ids = instance_ids.astype(np.int64)  # 1000 does not fit into a byte
    return np.where(ids < INSTANCES_PER_LABEL, ids, ids // INSTANCES_PER_LABEL)
