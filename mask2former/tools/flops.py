"""What a model costs: parameters, multiply-adds and activations of its parts, counted from shapes alone.

The model runs on torch's fake tensors, which have shapes and no data: counting takes a second and no memory,
whatever the size. What counts is what counts in fvcore, with which the paper's figures were made: one
multiply-add is one flop; a norm takes five an element, save batch norms, which fold into convolutions;
bilinear resizing takes four an element; activations, additions and the like take none. To that are added
operators that fvcore does not know: fused attention, sampling for deformable attention, bicubic resizing.
fvcore itself traces a real forward pass, never a fake one, and the largest configs would take it minutes and
gigabytes; the tests compare with it on a small one.

Shapes: `B` images, `Q` queries, `N` keys, `C` channels, `L` levels, `H, W` the padded image's sides.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former.data.augmentation import resize_shortest_edge
from mask2former.engine.build import build_model
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.predictions import Predictions
from mask2former.modeling.transformer_decoder.masked import (
    MultiScaleMaskedTransformerDecoder,
    blocked_cells,
    resize_mask_features,
)

Size = tuple[int, int]  # height, width in pixels

PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "transformer decoder": "sem_seg_head.predictor",
}  # and where they are in the model
REST = "post-processing"

CONVOLUTION, PRODUCT, ATTENTION = "convolution", "matrix product", "attention"
SAMPLING, NORM, RESIZING = "sampling", "norm", "resizing"
KINDS = (CONVOLUTION, PRODUCT, ATTENTION, SAMPLING, NORM, RESIZING)
ACTIVE_KINDS = (CONVOLUTION, PRODUCT, ATTENTION, SAMPLING)  # whose outputs are activations

IMAGES: dict[str, dict[Size, float]] = {
    "coco": {(480, 640): 0.7, (427, 640): 0.3},
    "ade20k": {(512, 512): 1.0},
    "cityscapes": {(1024, 2048): 1.0},
    "mapillary": {(3000, 4000): 1.0},
}  # dataset -> sides of its images and their share; COCO's shares are fitted (docs/costs.md)
USUAL_IMAGE = {(480, 640): 1.0}


class Rule(NamedTuple):
    """How an operator is counted: its kind, and flops from its output and its arguments."""

    kind: str
    flops: Callable[..., int]


def _product(out: Tensor, left: Tensor, right: Tensor) -> int:
    return left.numel() * right.shape[-1]


def _product_with_sum(out: Tensor, added: Tensor, left: Tensor, right: Tensor) -> int:
    return _product(out, left, right)


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *options: Any) -> int:
    transposed = options[4]  # after bias, stride, padding, dilation
    return (x if transposed else out).numel() * weight.shape[1:].numel()


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *options: Any) -> int:
    """Both products: (..., Q, C) with (..., N, C), and what comes of it with (..., N, C')."""
    return query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])


def _sampling(out: Tensor, value: Tensor, shapes: Sequence[int], points: Tensor, *options: Any) -> int:
    """Four corners for each point (..., 2) and channel of a head (B, S, heads, C)."""
    return 4 * points.shape[:-1].numel() * value.shape[-1]


def _per_element(count: int, out: Tensor, *arguments: Any) -> int:
    return count * out.numel()


RULES = {
    "aten::convolution": Rule(CONVOLUTION, _convolution),
    "aten::mm": Rule(PRODUCT, _product),
    "aten::bmm": Rule(PRODUCT, _product),
    "aten::addmm": Rule(PRODUCT, _product_with_sum),
    "aten::baddbmm": Rule(PRODUCT, _product_with_sum),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Rule(ATTENTION, _attention),
    "mask2former::ms_deform_attn": Rule(SAMPLING, _sampling),
    "aten::native_layer_norm": Rule(NORM, partial(_per_element, 5)),
    "aten::native_group_norm": Rule(NORM, partial(_per_element, 5)),
    "aten::upsample_nearest2d": Rule(RESIZING, partial(_per_element, 1)),
    "aten::upsample_bilinear2d": Rule(RESIZING, partial(_per_element, 4)),
    "aten::upsample_bicubic2d": Rule(RESIZING, partial(_per_element, 16)),
}

# Beside views and what torch itself calls pointwise: fresh memory, copies, reductions, and norms that fold.
FRESH = {"arange", "empty", "full", "new_empty", "new_full", "new_zeros", "ones", "zeros", "zeros_like"}
COPIES = {
    "_to_copy",
    "_unsafe_view",
    "cat",
    "clone",
    "constant_pad_nd",
    "index",
    "index_select",
    "roll",
    "stack",
}
REDUCTIONS = {"_softmax", "all", "amax", "any", "max_pool2d_with_indices", "mean", "sum"}
FREE = {f"aten::{name}" for name in FRESH | COPIES | REDUCTIONS | {"native_batch_norm"}} | {"prim::device"}


class CostCounter(TorchDispatchMode):
    """Counts what is computed while it is entered, on the account of `part`, which may be set meanwhile.

    `flops` and `activations` hold for each part its flops by kind and its activations; `uncounted` how often
    operators were met that are neither counted nor known to be free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = REST
        self.flops: dict[str, Counter[str]] = {part: Counter() for part in (*PARTS, REST)}
        self.activations: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and write it down."""
        out = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        if name in RULES:
            rule, first = RULES[name], out[0] if isinstance(out, tuple) else out
            self.flops[self.part][rule.kind] += rule.flops(first, *args)
            if rule.kind in ACTIVE_KINDS:
                self.activations[self.part] += first.numel()
        elif not (name in FREE or func.is_view or torch.Tag.pointwise in func.tags):
            self.uncounted[name] += 1
        return out

    def enter(self, part: str) -> None:
        """From here on, count for `part`."""
        self.part = part

    def total(self) -> int:
        """All flops."""
        return sum(kinds.total() for kinds in self.flops.values())


@dataclass(frozen=True)
class Cost:
    """Of one image: for each part its parameters, flops by kind, and activations in elements.

    Of post-processing only the mask logits of the last prediction are counted: the rest depends on what is
    seen. `published_flops` is what the network takes where mask logits are computed at their full size after
    every layer, as in the published implementation; None where the transformer decoder is another.
    `uncounted` operators, with the number of their calls, are missing from all that.
    """

    parameters: dict[str, int]
    flops: dict[str, Counter[str]]
    activations: Counter[str]
    published_flops: int | None
    uncounted: Counter[str]

    def total_flops(self) -> int:
        """Of all parts."""
        return sum(kinds.total() for kinds in self.flops.values())


@contextmanager
def parts_watched(model: nn.Module, enter: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile, `enter` is called with a part's name where it starts, and with REST where it ends."""
    handles = []
    for part, path in PARTS.items():
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(lambda *_, part=part: enter(part)))
        handles.append(module.register_forward_hook(lambda *_: enter(REST)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_parts(model: nn.Module) -> None:
    """Raise ValueError where the model is not made of the parts that costs are told apart by."""
    for path in PARTS.values():
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE and MODEL.SEM_SEG_HEAD.NAME give a {type(model).__name__} without "
                f"'{path}'; costs are told apart by {', '.join(PARTS.values())}"
            ) from None


def count_cost(cfg: CfgNode, size: Size) -> Cost:
    """The cost of the model of `cfg` for one image of `size`, padded as the model pads it.

    Raises:
        ValueError: the config is wrong, or its model has other parts.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg).eval().requires_grad_(False)
    check_parts(model)
    assert isinstance(model, MaskFormer)
    # No gradient is wanted, but where none can be, a CPU works in pieces: the same, in thousands of steps.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        model.to_empty(device="cpu")
        images = torch.empty(1, len(model.pixel_mean), *padded(size, model.size_divisibility))
        predictions, memory, counter = _count_network(model, images)
        extra = _count(_dense_masks, predictions, memory) - _count(_guiding_masks, predictions, memory)
    as_published = isinstance(_predictor(model), MultiScaleMaskedTransformerDecoder)
    return Cost(
        parameters={part: _parameters(model.get_submodule(path)) for part, path in PARTS.items()},
        flops=counter.flops,
        activations=counter.activations,
        published_flops=counter.total() + extra if as_published else None,
        uncounted=counter.uncounted,
    )


def padded(size: Size, divisor: int) -> Size:
    """Both sides rounded up to a multiple of `divisor`."""
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def usual_sizes(cfg: CfgNode) -> dict[Size, float]:
    """The sizes of a dataset's images as evaluation resizes them, the commonest first, with their shares.

    The dataset is known by the start of its name; images of others are taken to be 640 x 480.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    images = IMAGES.get(names[0].split("_")[0], USUAL_IMAGE) if names else USUAL_IMAGE
    sizes = {}
    for image, share in images.items():
        resized = resize_shortest_edge(image, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        sizes[resized.height, resized.width] = share
    return sizes


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _predictor(model: nn.Module) -> nn.Module:
    return model.get_submodule(PARTS["transformer decoder"])


def _count_network(model: MaskFormer, images: Tensor) -> tuple[Predictions, list[Tensor], CostCounter]:
    """The predictions for images (B, 3, H, W), the memory they were made from, and what that took."""
    memory: list[Tensor] = []
    handle = _predictor(model).register_forward_pre_hook(lambda _, inputs: memory.extend(inputs[0]))
    with CostCounter() as counter, parts_watched(model, counter.enter):
        predictions = model.network(images)
        predictions.mask_logits()
    handle.remove()
    return predictions, memory, counter


def _count(masks: Callable[[Predictions, list[Tensor]], None], *given: Any) -> int:
    with CostCounter() as counter:
        masks(*given)
    return counter.total()


def _guiding_masks(predictions: Predictions, memory: list[Tensor]) -> None:
    """What the transformer decoder computes to learn where queries may look."""
    shapes = [(level.shape[2], level.shape[3]) for level in memory]
    guides = [resize_mask_features(predictions.mask_features, shape) for shape in shapes]
    for i, prediction in enumerate(predictions.layers[:-1]):
        blocked_cells(prediction.mask_embed, guides[i % len(guides)])


def _dense_masks(predictions: Predictions, memory: list[Tensor]) -> None:
    """What the published implementation computes instead: mask logits at full size, then resized."""
    for i in range(len(predictions.layers) - 1):
        F.interpolate(predictions.mask_logits(i), memory[i % len(memory)].shape[2:], mode="bilinear")
