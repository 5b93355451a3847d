"""Mapillary Vistas: v1.2 with 65 classes, and v2.0, whose classes are read from its files.

Both versions share their images. Annotations of v1.2 lie in `{split}/v1.2`, or, in older downloads, in
`{split}` itself. In its label maps 65, the last label, means unlabeled. The id of an image is its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mask2former.data.catalog import Metadata, Record
from mask2former.data.datasets.coco import (
    PANOPTIC_FACTS,
    Row,
    categories_in,
    load_panoptic,
    load_panoptic_and_semantic,
    panoptic_categories,
    semantic_categories,
)
from mask2former.data.datasets.files import datasets_root, load_json, table
from mask2former.data.datasets.registration import Facts, Load, register
from mask2former.data.datasets.semantic import SEMANTIC_FACTS, load_semantic
from mask2former.data.load_context import LoadContext
from mask2former.utils.label_maps import IGNORE_LABEL

FOLDER = "mapillary_vistas"
SPLITS = {"train": "training", "val": "validation"}
LABELS = table("mapillary_vistas_v1.2_66")
CLASSES = [
    {**row, "id": row["panoptic_category_id"], "name": row["readable"]} for row in LABELS if row["evaluate"]
]
SEMANTIC: Facts = {"evaluator_type": SEMANTIC_FACTS["evaluator_type"]}
PANOPTIC: Facts = {**PANOPTIC_FACTS, "evaluator_type": "mapillary_vistas_panoptic_seg"}
LABEL_FACTS: Facts = {
    "ignore_label": next(row["label_id"] for row in LABELS if not row["evaluate"]),
    "official_label_ids": [row["label_id"] for row in CLASSES],
}


def register_mapillary() -> None:
    """Register v1.2 under its published names, and v2.0 as `mapillary_vistas_v2_...`."""
    datasets: dict[str, tuple[Facts, Callable[[str, LoadContext], Facts], Load]] = {
        "sem_seg": ({**SEMANTIC, **semantic_categories(CLASSES), **LABEL_FACTS}, _semantic_v1, load_semantic),
        "panoptic": (
            {**PANOPTIC, **panoptic_categories(CLASSES), **LABEL_FACTS},
            _panoptic_v1,
            load_panoptic_and_semantic,
        ),
        "v2_sem_seg": (SEMANTIC, _semantic_v2, _load_semantic_v2),
        "v2_panoptic": (PANOPTIC, _panoptic_v2, load_panoptic),
    }
    for name, (given, facts, load) in datasets.items():
        for split, folder in SPLITS.items():
            register(f"mapillary_vistas_{name}_{split}", given, functools.partial(facts, folder), load)


def _semantic_v1(split: str, context: LoadContext) -> Facts:
    return {"image_root": _path(split, "images"), "sem_seg_root": _path(_annotated_v1(split), "labels")}


def _panoptic_v1(split: str, context: LoadContext) -> Facts:
    annotated = _annotated_v1(split)
    return {
        **_semantic_v1(split, context),
        "panoptic_root": _path(annotated, "panoptic"),
        "panoptic_json": _path(annotated, "panoptic", "panoptic_2018.json"),
    }


def _semantic_v2(split: str, context: LoadContext) -> Facts:
    """Return the facts of v2.0; its classes are the labels that `config_v2.0.json` marks `evaluate`."""
    labels = _labels_v2(context)
    official = [number for number, label in enumerate(labels) if label["evaluate"]]
    return {
        "image_root": _path(split, "images"),
        "sem_seg_root": _path(split, "v2.0", "labels"),
        "ignore_label": IGNORE_LABEL,
        **semantic_categories([labels[number] for number in official], "readable"),
        "official_label_ids": official,
        "official_ignore_label": next((n for n in range(len(labels)) if n not in official), IGNORE_LABEL),
    }


def _load_semantic_v2(metadata: Metadata, context: LoadContext) -> list[Record]:
    labels = _labels_v2(context)
    ignored = dict.fromkeys(range(len(labels)), metadata.ignore_label)
    contiguous = {label: i for i, label in enumerate(metadata.official_label_ids)}
    return load_semantic(metadata, context, {**ignored, **contiguous})


def _panoptic_v2(split: str, context: LoadContext) -> Facts:
    """Return the facts of v2.0; its classes are the categories of the panoptic JSON."""
    json_file = _path(split, "v2.0", "panoptic", "panoptic_2020.json")
    return {
        "image_root": _path(split, "images"),
        "panoptic_root": _path(split, "v2.0", "panoptic"),
        "panoptic_json": json_file,
        **panoptic_categories(categories_in(json_file, "isthing", context=context)),
    }


def _labels_v2(context: LoadContext) -> list[Row]:
    return list(load_json(_path("config_v2.0.json"), "labels", context=context)["labels"])


def _annotated_v1(split: str) -> str:
    nested = f"{split}/v1.2"
    return nested if (datasets_root() / FOLDER / nested).is_dir() else split


def _path(*parts: str) -> str:
    return str(datasets_root().joinpath(FOLDER, *parts))
