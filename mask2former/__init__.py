"""Mask2Former: semantic, instance and panoptic segmentation by masked attention.

The public names are imported at their first use, so that a part, as the config, loads alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mask2former.version import __version__

if TYPE_CHECKING:
    from mask2former.config import get_cfg, load_config
    from mask2former.engine.build import build_model
    from mask2former.predictor import Predictor

__all__ = ["Predictor", "__version__", "add_maskformer2_config", "build_model", "get_cfg", "load_config"]

_HOMES = {
    "Predictor": "mask2former.predictor",
    "build_model": "mask2former.engine.build",
    "get_cfg": "mask2former.config",
    "load_config": "mask2former.config",
}

# Names that scripts written for the original project import; they need Detectron2
_HOST = "mask2former.detectron2_host"
_HOMES |= dict.fromkeys(
    (
        "COCOInstanceNewBaselineDatasetMapper",
        "COCOPanopticNewBaselineDatasetMapper",
        "DETRPanopticDatasetMapper",
        "InstanceSegEvaluator",
        "MaskFormerInstanceDatasetMapper",
        "MaskFormerPanopticDatasetMapper",
        "MaskFormerSemanticDatasetMapper",
        "SemanticSegmentorWithTTA",
    ),
    _HOST,
)

# Names of Detectron2, transformers and mmdetection -> what to type here (docs/coming_from.md)
_FOREIGN = {
    **dict.fromkeys(
        ("DefaultPredictor", "DetInferencer", "inference_detector", "init_detector"),
        'Predictor("model_final.pth")("img.jpg")',
    ),
    **dict.fromkeys(
        (
            "AutoImageProcessor",
            "AutoModel",
            "Mask2FormerForUniversalSegmentation",
            "Mask2FormerImageProcessor",
            "from_pretrained",
            "model_zoo",
            "pipeline",
        ),
        'Predictor.from_zoo("coco-panoptic-swin-l")("img.jpg")',
    ),
    **dict.fromkeys(("DetLocalVisualizer", "Visualizer"), "result.draw() or result.save(path)"),
    "from_zoo": 'Predictor.from_zoo("coco-panoptic-swin-l"), or Predictor("model_final.pth") for a file',
    **dict.fromkeys(("DefaultTrainer", "Runner", "Trainer"), "mask2former train --config-file FILE"),
    **dict.fromkeys(("Boxes", "Instances"), "from mask2former.structures import Boxes, Instances"),
    **dict.fromkeys(
        ("DatasetCatalog", "MetadataCatalog"), "from mask2former.data import DatasetCatalog, MetadataCatalog"
    ),
}


def add_maskformer2_config(cfg: Any) -> None:
    """Add the keys that `cfg` lacks.

    A config of Detectron2's class belongs to a script that runs in Detectron2, so its host is imported too.
    """
    if type(cfg).__module__.partition(".")[0] == "detectron2":
        import_module(_HOST)
    import_module("mask2former.config").add_maskformer2_config(cfg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module"})


def __getattr__(name: str) -> Any:
    if name in _FOREIGN:  # an ImportError, because `from ... import` hides the text of an AttributeError
        raise ImportError(f"mask2former has no {name}; type {_FOREIGN[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mask2former' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
