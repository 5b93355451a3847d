"""Cost of a model: parameters, multiply-adds and activations of its parts, counted from shapes alone.

The model runs on torch's fake tensors, which have shapes and no data, under torch's own counter of flops:
counting takes a second and no memory, whatever the size. One multiply-add is one flop, as in fvcore, with
which the figures of the paper were made. Convolutions, products of matrices, attention and the sampling of
deformable attention count. Norms, resizing, activation functions and additions do not; fvcore counts norms
with 5 flops an element and bilinear resizing with 4, which is 0.2 % of a model.

Shapes: `B` images, `Q` queries, `C` channels, `H, W` the padded image's sides.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mask2former.config import with_values
from mask2former.data.augmentation import resize_shortest_edge
from mask2former.engine.build import build_model
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.predictions import Predictions
from mask2former.modeling.transformer_decoder.masked import MultiScaleMaskedTransformerDecoder

Size = tuple[int, int]  # height, width in pixels

PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "transformer decoder": "sem_seg_head.predictor",
}  # name -> path of the module in the model
REST = "post-processing"

IMAGES: dict[str, dict[Size, float]] = {
    "coco": {(480, 640): 0.7, (427, 640): 0.3},
    "ade20k": {(512, 512): 1.0},
    "cityscapes": {(1024, 2048): 1.0},
    "mapillary": {(3000, 4000): 1.0},
}  # dataset -> sides of its images and their share; COCO's shares are fitted (docs/costs.md)
USUAL_IMAGE = {(480, 640): 1.0}

aten = torch.ops.aten
CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
SAMPLING = torch.ops.mask2former.ms_deform_attn
KINDS = {
    "convolution": {aten.convolution},
    "matrix product": {aten.mm, aten.addmm, aten.bmm, aten.baddbmm},
    "attention": {CPU_ATTENTION},
    "sampling": {SAMPLING},
}  # kind -> operators


def _sampling_flops(value: Any, shapes: Any, points: Any, *_: Any, **__: Any) -> int:
    """Count four corners for each point (..., 2) and channel of a head (B, S, heads, C)."""
    return 2 * 4 * prod(points[:-1]) * value[-1]


def _elements(*_: Any, out_shape: Any, **__: Any) -> int:
    return prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])


def count_flops() -> FlopCounterMode:
    """Return torch's counter with the formulas that it lacks. It counts two flops for a multiply-add."""
    formulas = {
        CPU_ATTENTION: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        SAMPLING: _sampling_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def count_activations() -> FlopCounterMode:
    """Return torch's counter, counting the elements that the operators of `KINDS` output."""
    operators = set().union(*KINDS.values())
    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(operators, _elements))


@dataclass(frozen=True)
class Cost:
    """Cost of one image: parameters, flops by kind, and activations in elements, of each part.

    Post-processing is the mask logits of the last prediction alone: the rest depends on the image's content.
    `published_flops` is the network's total if mask logits are computed at their full size after every layer,
    as in the published implementation; None if the model has another transformer decoder.
    """

    parameters: dict[str, int]
    flops: dict[str, Counter[str]]
    activations: dict[str, int]
    published_flops: int | None

    def total_flops(self) -> int:
        """Return the flops of all parts."""
        return sum(kinds.total() for kinds in self.flops.values())


def count_cost(cfg: CfgNode, size: Size) -> Cost:
    """Return the cost of the model of `cfg` for one image of `size`, padded as the model pads it.

    Raises:
        ValueError: the config is wrong, or its model has other parts.
    """
    cfg = with_values(cfg, {"MODEL.DEVICE": "meta"}, "count_cost")
    with torch.device("meta"):
        model = build_model(cfg).eval().requires_grad_(False)
    try:
        parts = {part: model.get_submodule(path) for part, path in PARTS.items()}
    except AttributeError as error:
        wanted = ", ".join(PARTS.values())
        raise ValueError(
            f"MODEL.META_ARCHITECTURE gives a {type(model).__name__} without one of {wanted} ({error})"
        ) from error
    assert isinstance(model, MaskFormer)
    memory: list[Tensor] = []
    predictor = parts["transformer decoder"]
    predictor.register_forward_pre_hook(lambda _, inputs: memory.extend(inputs[0]))
    # Gradients are enabled because without them a CPU works in chunks, here in thousands of steps
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        model.to_empty(device="cpu")
        images = torch.empty(1, len(model.pixel_mean), *padded(size, model.size_divisibility))
        with count_activations() as elements, count_flops() as counter:
            predictions = model.network(images)
            predictions.mask_logits()
    flops = _by_part(counter, model, unit=2)
    total = sum(kinds.total() for kinds in flops.values())
    as_published = isinstance(predictor, MultiScaleMaskedTransformerDecoder)
    return Cost(
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()},
        flops=flops,
        activations={part: kinds.total() for part, kinds in _by_part(elements, model, unit=1).items()},
        published_flops=total + _full_size_masks(predictions, memory) if as_published else None,
    )


def _by_part(counter: FlopCounterMode, model: nn.Module, unit: int) -> dict[str, Counter[str]]:
    """Return the counts of each part by kind, in `unit`s; torch names a module by its path from the first."""
    counts = counter.get_flop_counts()
    parts = {}
    for part, path in PARTS.items():
        first, _, rest = path.partition(".")
        name = type(model.get_submodule(first)).__name__
        parts[part] = _by_kind(counts.get(f"{name}.{rest}" if rest else name, {}), unit)
    counted = sum(parts.values(), Counter[str]())
    return {**parts, REST: _by_kind(counts["Global"], unit) - counted}


def _by_kind(counts: dict[Any, int], unit: int) -> Counter[str]:
    return Counter({kind: sum(counts.get(op, 0) for op in ops) // unit for kind, ops in KINDS.items()})


def _full_size_masks(predictions: Predictions, memory: list[Tensor]) -> int:
    """Return what mask logits at full size cost more than at the size of the level (B, C, h, w) they guide.

    The logits are products of embeddings (B, Q, C) and features (B, C, H, W).
    """
    full, *levels = (tensor.shape[-2:].numel() for tensor in (predictions.mask_features, *memory))
    layers = predictions.layers[:-1]
    return sum(layer.mask_embed.numel() * (full - levels[i % len(levels)]) for i, layer in enumerate(layers))


def padded(size: Size, divisor: int) -> Size:
    """Return both sides rounded up to a multiple of `divisor`."""
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def usual_sizes(cfg: CfgNode) -> dict[Size, float]:
    """Return the sizes that evaluation resizes a dataset's images to, with their shares, the largest first.

    The dataset is known by the start of its name; images of other datasets count as 640 x 480.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    images = IMAGES.get(names[0].split("_")[0], USUAL_IMAGE) if names else USUAL_IMAGE
    sizes = {}
    for image, share in images.items():
        resized = resize_shortest_edge(image, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        sizes[resized.height, resized.width] = share
    return sizes
