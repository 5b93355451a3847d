"""An exported file in the place of a model with weights: the same post-processing of its logits.

Shapes: `B` images, `Q` queries, `K` classes, `H, W` the padded image's sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from mask2former.engine.setup.dataset_facts import with_dataset_facts
from mask2former.export.runtimes import Exported, open_exported, read_metadata
from mask2former.modeling.eomt.options import ARCHITECTURE as EOMT
from mask2former.modeling.eomt.squares import SquareInputs
from mask2former.modeling.mask_former import Inputs, MaskFormer
from mask2former.modeling.postprocessing.inference import InferenceOptions, build_inference_options
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.weights.contents import WeightsError, is_exported
from mask2former.weights.read import Checkpoint, local_file, read_checkpoint


@dataclass
class ExportedPredictions:
    """The last prediction: class logits (B, Q, K+1) and dense mask logits (B, Q, H/4, W/4)."""

    class_logits: Tensor
    mask_logits: Tensor

    def of_images(self, sizes: Sequence[Sizes], layer: int = -1) -> list[ImagePrediction]:
        """Return the prediction for each image; there is no other layer than the last."""
        assert layer == -1
        images = zip(self.class_logits.softmax(-1), self.mask_logits, sizes, strict=True)
        return [ImagePrediction(*image) for image in images]


class ExportedModel(MaskFormer):
    """A model whose network is an exported file; it has no weights, and cannot be trained."""

    def __init__(self, exported: Exported, *, inference: InferenceOptions, num_classes: int) -> None:
        super().__init__(
            backbone=nn.Identity(),
            sem_seg_head=nn.Identity(),
            criterion=nn.Identity(),
            inference=inference,
            num_classes=num_classes,
            pixel_mean=exported.metadata.image_mean,
            pixel_std=exported.metadata.image_std,
            size_divisibility=exported.metadata.size_divisibility,
        )
        self.exported = exported
        self.to(exported.device).eval()

    def losses(self, batched_inputs: Inputs) -> NoReturn:
        """Refuse to train."""
        raise TypeError("an exported file has no weights to train")

    def network(  # type: ignore[override]
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> ExportedPredictions:
        """Predict from normalized, padded images (B, 3, H, W)."""
        return ExportedPredictions(*self.exported.logits(images))


class ExportedEomt(SquareInputs, ExportedModel):
    """An exported EoMT: the file takes images of any shape, and this class makes squares of them."""


def read_trained(source: str | Path) -> Checkpoint:
    """Return a trained model's checkpoint; that of an exported file has its config and classes, no weights.

    Raises:
        WeightsError: the file cannot be read, or is none of these.
    """
    if not is_exported(source):
        return read_checkpoint(source)
    metadata = read_metadata(local_file(source))
    return Checkpoint(str(source), {}, metadata.config, metadata.metadata)


def exported_model(
    cfg: CfgNode,
    checkpoint: Checkpoint,
    precision: str = "fp32",
    calibrate: str | PathLike[str] | None = None,
) -> ExportedModel:
    """Return the model of an exported file that `read_trained` read, on MODEL.DEVICE.

    Thresholds and tasks are those of the config; sizes and normalization those of the file.

    Raises:
        WeightsError: as `open_exported`; or the file predicts another number of classes.
        ValueError: the runtime does not compute on the device, or not in that precision; or
            MODEL.MASK_FORMER.TEST.LAYER is not the last.
    """
    if calibrate is not None or precision == "int8":
        raise ValueError(f"{checkpoint.file}: to predict in int8, export with --int8 --calibrate DIR")
    cfg = with_dataset_facts(cfg)
    file, num_classes = checkpoint.file, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    inference = build_inference_options(cfg)
    if inference.layer != -1:
        raise ValueError(
            f"MODEL.MASK_FORMER.TEST.LAYER is {inference.layer}, but {file} predicts with the last layer, -1"
        )
    exported = open_exported(file, device=cfg.MODEL.DEVICE, precision=precision)
    if (found := len(exported.metadata.class_names)) != num_classes:
        raise WeightsError(
            file, f"predicts {found} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}"
        )
    parts = {"exported": exported, "inference": inference, "num_classes": num_classes}
    if cfg.MODEL.META_ARCHITECTURE == EOMT:
        return ExportedEomt(squares=cfg.MODEL.EOMT.SQUARES, **parts)
    return ExportedModel(**parts)
