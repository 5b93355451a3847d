"""Datasets: catalogs, formats, augmentation and loaders.

Importing this package registers the built-in datasets; their files are read on first use.
"""

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.data.custom.dataset import register_custom_dataset
from mask2former.data.datasets.coco import register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.semantic import register_semantic
from mask2former.data.datasets.youtube_vis import register_ytvis_instances
from mask2former.data.errors import DatasetError
from mask2former.data.loader import build_test_loader, build_train_loader
from mask2former.data.mapper import build_test_mapper, build_train_mapper

register_own_data = register_custom_dataset  # the former name

__all__ = [
    "DatasetCatalog",
    "DatasetError",
    "Metadata",
    "MetadataCatalog",
    "build_test_loader",
    "build_test_mapper",
    "build_train_loader",
    "build_train_mapper",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_custom_dataset",
    "register_own_data",
    "register_semantic",
    "register_ytvis_instances",
]
