"""The Detectron2 host: this project as an extension of an installed Detectron2 (main branch of 2026).

Importing it joins the two. Our builders stand in Detectron2's registries and find its backbones; each side's
catalogs know the other's datasets; our readers read the addresses that its PathManager does. Types are
converted at this seam only (`seam`): nothing else of the project knows Detectron2. docs/detectron2.md shows
how to install it, and what works without it.
"""

try:
    from detectron2 import modeling as _  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "detectron2":
        raise
    raise ModuleNotFoundError(
        "this needs Detectron2, which is not installed. It is built from its authors' source: pip install "
        "--no-build-isolation git+https://github.com/facebookresearch/detectron2.git (docs/detectron2.md has "
        "all steps). Everything else of the project works without it",
        name="detectron2",
    ) from error

from mask2former.config import add_maskformer2_config
from mask2former.detectron2_host.catalogs import join_catalogs
from mask2former.detectron2_host.evaluators import HostEvaluator, InstanceSegEvaluator, build_evaluator
from mask2former.detectron2_host.mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    DatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.detectron2_host.model import HostMaskFormer, SemanticSegmentorWithTTA
from mask2former.detectron2_host.paths import join_paths
from mask2former.detectron2_host.registries import join_registries
from mask2former.detectron2_host.running import main
from mask2former.detectron2_host.seam import instances_from_detectron2, instances_to_detectron2
from mask2former.detectron2_host.trainer import Trainer

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "DatasetMapper",
    "HostEvaluator",
    "HostMaskFormer",
    "InstanceSegEvaluator",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "add_maskformer2_config",
    "build_evaluator",
    "instances_from_detectron2",
    "instances_to_detectron2",
    "main",
]

join_registries()
join_catalogs()
join_paths()
