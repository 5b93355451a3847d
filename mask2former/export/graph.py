"""The graph that is exported: from images of any size to the logits of the last prediction.

Shapes: `B` images, `Q` queries, `K` classes, `h, w` the sides of the images, `H, W` the same rounded up to
multiples of the model's divisibility.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mask2former.export.runtimes import INPUT, OUTPUTS
from mask2former.modeling.backbone.windows import next_multiple
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.predictions import Predictions
from mask2former.utils.messages import InputError

# Sides to trace with: far from special cases, such as a single window or none to pad
LONG_SIDES = (832, 928)
OPSET = 20


class Graph(nn.Module):
    """A model's network with the dense logits of its last prediction as output.

    It pads images itself. So files take images of any size, and all sizes in the graph are multiples of a
    whole number, which torch.export simplifies.

    Raises:
        InputError: the model predicts something else than masks with classes, or for several tasks.
    """

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model
        self.divisor = model.size_divisibility
        require_masks(model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (B, Q, K+1) and mask logits (B, Q, H/4, W/4) of images (B, 3, h, w)."""
        height, width = (next_multiple(side, self.divisor) for side in (images.shape[2], images.shape[3]))
        padded = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        predictions = self.model.network(padded)
        return predictions.layers[-1].class_logits, predictions.mask_logits()


class HalfGraph(nn.Module):
    """A graph whose parameters are stored in float16, and computed with in float32."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.widened = copy.deepcopy(graph)
        for parameter in self.widened.parameters():
            parameter.data = parameter.data.half()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits as `Graph`."""
        weights = {name: parameter.float() for name, parameter in self.widened.named_parameters()}
        logits: tuple[Tensor, Tensor] = functional_call(self.widened, weights, (images,))
        return logits


@torch.no_grad()
def require_masks(model: MaskFormer) -> None:
    """Run a model once, and raise InputError if it predicts something else than masks with classes."""
    side = 2 * max(model.size_divisibility, 32)
    images = torch.zeros(1, len(model.pixel_mean), side, side, device=model.device)
    found = model.network(images, [(side, side)])
    if type(found) is not Predictions:
        raise InputError(
            f"a model with {type(found).__name__} cannot be exported: files hold masks and the logits of "
            "their classes, as Mask2Former and MaskFormer predict, but not DETR, K-Net and per-pixel models"
        )
    if found.tasks:
        raise InputError(
            f"a model for several tasks ({', '.join(found.tasks)}) cannot be exported as it is: files hold "
            "one prediction; add --task TASK"
        )


def torch_program(graph: nn.Module, divisor: int) -> ExportedProgram:
    """Trace a graph for torch.export, with this project's operator as it is."""
    sizes = {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(graph, _example(divisor), dynamic_shapes=(sizes,), strict=False)


def onnx_program(graph: nn.Module, divisor: int) -> Any:
    """Translate a graph to ONNX; the result is torch's ONNXProgram."""
    sizes = {0: "batch", 2: "height", 3: "width"}
    # The fused attention is not translated: its output has strides that a later view refuses.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.onnx.export(
            graph,
            _example(divisor),
            dynamo=True,
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )


def _example(divisor: int) -> tuple[Tensor]:
    """Return two images, because the size of a single one would become a constant."""
    height, width = (max(side // divisor, i) * divisor for i, side in enumerate(LONG_SIDES, 2))
    return (torch.zeros(2, 3, height, width),)
