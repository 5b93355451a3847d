"""The Detectron2 host: this project as an extension of an installed Detectron2 (main branch of 2026).

Importing it registers our builders in Detectron2's registries and makes its backbones available to our head.
Each side's catalogs get the other side's datasets, and our readers can open every URL that Detectron2's
PathManager opens. Only `type_conversion` converts types. No other part of the project imports Detectron2.
docs/detectron2.md explains the installation.
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

from mask2former.detectron2_host.catalogs import join_catalogs
from mask2former.detectron2_host.mappers import (
    COCOInstanceNewBaselineDatasetMapper,
    COCOPanopticNewBaselineDatasetMapper,
    DatasetMapper,
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from mask2former.detectron2_host.model import HostEomt, HostMaskFormer, SemanticSegmentorWithTTA
from mask2former.detectron2_host.paths import HostPaths
from mask2former.detectron2_host.registries import join_registries
from mask2former.detectron2_host.trainer import (
    HostMaskAnnealing,
    InstanceSegEvaluator,
    Trainer,
    build_evaluator,
)
from mask2former.detectron2_host.type_conversion import instances_from_detectron2, instances_to_detectron2
from mask2former.utils.storage import path_manager

__all__ = [
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "DETRPanopticDatasetMapper",
    "DatasetMapper",
    "HostEomt",
    "HostMaskAnnealing",
    "HostMaskFormer",
    "InstanceSegEvaluator",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "build_evaluator",
    "instances_from_detectron2",
    "instances_to_detectron2",
]

join_registries()
join_catalogs()
path_manager.register_handler(HostPaths())
