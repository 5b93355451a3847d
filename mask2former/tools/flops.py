"""Cost of a model: parameters, multiply-adds and activations of its parts, counted from shapes alone.

The model runs on torch's fake tensors, which have shapes and no data, under torch's own counter of flops:
counting takes a second and no memory, whatever the size. One multiply-add is one flop, as in fvcore, with
which the figures of the paper were made. Convolutions, products of matrices, attention and the sampling of
deformable attention count. Norms, resizing, activation functions and additions do not.

The papers' figures contain more, and one thing less: see `Cost`.

Shapes: `B` images, `Q` queries, `K` classes, `C` channels, `H, W` the padded image's sides, `h, w` those of
the image before it is resized.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

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
from mask2former.modeling.transformer_decoder.standard import StandardTransformerDecoder
from mask2former.modeling.upernet import UperNetHead

Size = tuple[int, int]  # height, width in pixels
MILLION, GIGA = 1e6, 1e9

PARTS = {
    "backbone": "backbone",
    "pixel decoder": "sem_seg_head.pixel_decoder",
    "transformer decoder": "sem_seg_head.predictor",
}  # name -> path of the module in the model
UNDIVIDED = {"backbone": "backbone", "head": "sem_seg_head"}  # of a model without those, such as DETR
REST = "post-processing"
TRAINING = "training alone"  # modules that do not predict

IMAGES: dict[str, dict[Size, float]] = {
    "coco": {(480, 640): 0.7, (427, 640): 0.3},
    "ade20k": {(512, 512): 1.0},
    "cityscapes": {(1024, 2048): 1.0},
    "mapillary": {(3000, 4000): 1.0},
    "ytvis": {(720, 1280): 1.0},  # of one frame
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
RESIZING = 4  # flops an element, as fvcore counts
NORMS_AND_RESIZING = {
    aten.native_layer_norm: 5,
    aten.native_group_norm: 5,
    aten.native_batch_norm: 2,
    aten.upsample_bilinear2d: RESIZING,
    aten.upsample_nearest2d: 1,
}  # operator -> flops an element, as fvcore counts


class UsualImage(NamedTuple):
    """An image of a dataset: its sides when evaluated and in its file, and its share of the images."""

    size: Size
    original: Size
    share: float


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


def count_norms_and_resizing() -> FlopCounterMode:
    """Return torch's counter with fvcore's formulas for what `KINDS` leaves out; the unit is one flop."""
    formulas = {
        key: lambda *_, out_shape, flops=flops, **__: flops * _elements(out_shape=out_shape)
        for operator, flops in NORMS_AND_RESIZING.items()
        for key in (operator, operator.default)  # torch decomposes an operator if its overload is missing
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


@dataclass(frozen=True)
class Cost:
    """Cost of one image: parameters, flops by kind, and activations in elements, of each part.

    Post-processing is the mask logits of the last prediction alone: the rest depends on the image's content.
    `published` is what the authors of Mask2Former and MaskFormer counted, with fvcore: operators here but for
    the sampling of deformable attention; full-size mask logits after every layer, as their code computes
    them; norms and resizing; and post-processing. For UperNet it is what mmsegmentation counts: operators but
    for attention. It is empty for the per-pixel baselines, EoMT, and models for several tasks. `input_shape`
    (B, 3, H, W) is what the network sees of the image.
    """

    input_shape: tuple[int, ...]
    parameters: dict[str, int]
    flops: dict[str, Counter[str]]
    activations: dict[str, int]
    published: Counter[str]

    @property
    def published_flops(self) -> int:
        """Return the flops as the authors counted them; 0 for the per-pixel baselines."""
        return self.published.total()

    @property
    def full_size_flops(self) -> int:
        """Return the flops with mask logits at full size after every layer, as the authors' code has them."""
        return self.total_flops() + self.published["full-size masks"]

    def total_flops(self) -> int:
        """Return the flops of all parts."""
        return sum(kinds.total() for kinds in self.flops.values())


def count_cost(cfg: CfgNode, size: Size, original: Size | None = None) -> Cost:
    """Return the cost of the model of `cfg` for one image of `size`, padded as the model pads it.

    `original` is the size of results, that of the image's file; by default `size`. Only `published`
    depends on it.

    Raises:
        ValueError: the config is wrong, or its model has other parts.
    """
    cfg = with_values(cfg, {"MODEL.DEVICE": "meta"}, "count_cost")
    with torch.device("meta"):
        model = build_model(cfg).eval().requires_grad_(False)
    parts = parts_of(model)
    assert isinstance(model, MaskFormer)
    memory: list[Tensor] = []
    if "transformer decoder" in parts:
        parts["transformer decoder"].register_forward_pre_hook(lambda _, inputs: memory.extend(inputs[0]))
    # Gradients are enabled because without them a CPU works in chunks, here in thousands of steps
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        model.to_empty(device="cpu")
        images = torch.empty(model.input_shape(size))
        with count_activations() as elements, count_flops() as counter, count_norms_and_resizing() as others:
            predictions = model.network(images)
            predictions.mask_logits()
    flops = _by_part(counter, model, parts, unit=2)
    published = Counter[str]()
    kinds = sum(flops.values(), Counter[str]())
    if isinstance(model.sem_seg_head, UperNetHead):
        published["operators"] = kinds.total() - kinds["attention"]
    elif isinstance(predictions, Predictions) and "transformer decoder" in parts and not predictions.tasks:
        elementwise = others.get_flop_counts()["Global"]
        published["operators"] = kinds.total() - kinds["sampling"]
        published["norms and resizing"] = sum(elementwise.get(op, 0) for op in NORMS_AND_RESIZING)
        published["full-size masks"] = _full_size_masks(model, predictions, memory)
        sides = images.shape[-2:]
        published["post-processing"] = _post_processing(model, predictions, sides, original or size)
    parameters = {part: _count_parameters(module) for part, module in parts.items()}
    if idle := _count_parameters(model) - sum(parameters.values()):
        parameters[TRAINING] = idle
    return Cost(
        input_shape=tuple(images.shape),
        parameters=parameters,
        flops=flops,
        activations={part: kinds.total() for part, kinds in _by_part(elements, model, parts, unit=1).items()},
        published=published,
    )


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a model by name.

    Raises:
        ValueError: it has others.
    """
    for paths in (PARTS, UNDIVIDED):
        with suppress(AttributeError):
            return {part: model.get_submodule(path) for part, path in paths.items()}
    wanted = ", ".join(PARTS.values())
    raise ValueError(f"MODEL.META_ARCHITECTURE gives a {type(model).__name__} without one of {wanted}")


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _by_part(
    counter: FlopCounterMode, model: nn.Module, parts: dict[str, nn.Module], unit: int
) -> dict[str, Counter[str]]:
    """Return the counts of each part by kind, in `unit`s; torch names a module by its path from the first."""
    counts, found = counter.get_flop_counts(), {}
    paths = {module: path for path, module in model.named_modules()}
    for part, module in parts.items():
        first, _, rest = paths[module].partition(".")
        name = type(model.get_submodule(first)).__name__
        found[part] = _by_kind(counts.get(f"{name}.{rest}" if rest else name, {}), unit)
    counted = sum(found.values(), Counter[str]())
    return {**found, REST: _by_kind(counts["Global"], unit) - counted}


def _by_kind(counts: dict[Any, int], unit: int) -> Counter[str]:
    return Counter({kind: sum(counts.get(op, 0) for op in ops) // unit for kind, ops in KINDS.items()})


def _full_size_masks(model: MaskFormer, predictions: Predictions, memory: list[Tensor]) -> int:
    """Return what the mask logits of the layers before the last cost more at full size than as computed here.

    Logits are products of embeddings (B, Q, C) and features (B, C, H/4, W/4). Here they are computed at the
    size of the level of memory that they guide, and not at all before a first layer that attends everywhere.
    """
    predictor = model.sem_seg_head.predictor
    product = predictions.layers[-1].mask_embed.numel()
    full = predictions.mask_features.shape[-2:].numel()
    if isinstance(predictor, StandardTransformerDecoder):
        # A fit: MaskFormer's figures for ADE20K have the last prediction's logits alone, those for COCO all
        return 0 if model.tasks == ("semantic",) else (len(predictions.layers) - 1) * product * full
    if not isinstance(predictor, MultiScaleMaskedTransformerDecoder) or not predictor.reads_masks:
        return 0
    levels = [memory[level].shape[-2:].numel() for level in predictor.levels]
    if predictor.options.concatenate_levels:
        levels = [sum(levels)]
    levels.append(full)  # of the mask features, which `fine_layers` attend to
    guided = predictor.turns if predictor.options.learned_queries else predictor.turns[1:]
    return product * (len(predictor.turns) * full - sum(levels[turn] for turn in guided))


def _post_processing(
    model: MaskFormer, predictions: Predictions, padded_size: Sequence[int], original: Size
) -> int:
    """Return the flops of the published post-processing: resizing, and the products of semantic inference.

    Mask logits (Q, H/4, W/4) are resized to (H, W). Then either they are resized to (h, w) before semantic
    inference, their product with class probabilities (Q, K), or its result (K, h, w) is. MaskFormer's code
    always computes the semantic result.
    """
    queries, classes = predictions.layers[-1].mask_embed.shape[1], model.num_classes
    semantic = "semantic" in model.tasks or isinstance(
        model.sem_seg_head.predictor, StandardTransformerDecoder
    )
    first = model.inference.resizes_logits
    resized = queries * prod(padded_size) + (queries if first else classes) * prod(original)
    product = queries * classes * prod(original if first else padded_size)
    return RESIZING * resized + (product if semantic else 0)


def usual_images(cfg: CfgNode) -> list[UsualImage]:
    """Return images of a config's dataset, the most common first, with the sizes they are evaluated at.

    The dataset is known by the start of its name; images of other datasets count as 640 x 480.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    images = IMAGES.get(names[0].split("_")[0], USUAL_IMAGE) if names else USUAL_IMAGE
    usual = []
    for original, share in images.items():
        resized = resize_shortest_edge(original, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        usual.append(UsualImage((resized.height, resized.width), original, share))
    return usual


class MeanCost(NamedTuple):
    """Parameters, and a usual image's flops: as the authors counted, with full-size masks, and here."""

    parameters: int
    published: float
    full_size_masks: float
    here: float

    @property
    def as_authors(self) -> float:
        """Return the flops as the authors counted, or those here of models that they did not count."""
        return self.published or self.here


def mean_cost(cfg: CfgNode) -> MeanCost:
    """Return the cost of a config's model, averaged over the usual images of its dataset."""
    costs = [(image.share, count_cost(cfg, image.size, image.original)) for image in usual_images(cfg)]
    return MeanCost(
        parameters=sum(costs[0][1].parameters.values()),
        published=sum(share * cost.published_flops for share, cost in costs),
        full_size_masks=sum(share * cost.full_size_flops for share, cost in costs),
        here=sum(share * cost.total_flops() for share, cost in costs),
    )
