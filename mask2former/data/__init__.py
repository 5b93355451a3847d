"""Datasets: their catalogs and formats, augmentation, and the loaders.

Importing this makes the built-in datasets known by name; nothing is read before it is used.
"""

from mask2former.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.data.custom.dataset import register_custom_dataset
from mask2former.data.datasets.coco import register_coco_instances, register_coco_panoptic
from mask2former.data.datasets.semantic import register_semantic
from mask2former.data.errors import DatasetError
from mask2former.data.loader import build_test_loader, build_train_loader
from mask2former.data.mapper import build_test_mapper, build_train_mapper

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
    "register_semantic",
]
