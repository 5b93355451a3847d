"""Prediction in int8: convolutions and linear layers of the backbone and the pixel decoder, on x86 with VNNI.

Weights are signed, with a scale for each output channel. Inputs are unsigned, with one scale and zero point a
layer, which cover the values seen on calibration images. oneDNN multiplies and sums in int32; torch has its
operators for its own compiler. Batch norm is folded into the weights. A layer in front of another one of
`CHAINS` writes what that one reads: 8 bits with a zero point of 0, which is the ReLU between them.

The transformer decoder and the layers that predict sampling points stay in floating point: where detection
transformers are quantized as a whole, their accuracy is lost.

Shapes: `B` images, `C` channels, `O` output channels, `H, W` the sides of a map, `N` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mask2former.modeling.backbone.resnet import BasicBlock, Bottleneck
from mask2former.modeling.layers.chunking import map_chunks
from mask2former.modeling.layers.conv import ConvNorm
from mask2former.modeling.layers.norm import FrozenBatchNorm2d
from mask2former.modeling.mask_former import MaskFormer
from mask2former.modeling.pixel_decoder.msdeformattn import EncoderLayer

PARTS = ("backbone", "sem_seg_head.pixel_decoder")
IN_FLOAT = ("sampling_offsets", "attention_weights")  # a cell and more of error moves the sampled points
CHAINS = {  # layers with a ReLU and nothing else between them
    Bottleneck: ("conv1", "conv2", "conv3"),
    BasicBlock: ("conv1", "conv2"),
    EncoderLayer: ("linear1", "linear2"),
}
FOLDED_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, type(None))
NO_POST_OP = ("none", (), "")  # of oneDNN: name, arguments, algorithm


class Quantization(NamedTuple):
    """The map of floats to 0..255: round(x / scale) + zero_point, cut off at both ends."""

    scale: float
    zero_point: int

    @classmethod
    def of_range(cls, low: float, high: float) -> Quantization:
        """Cover the values from `low` to `high`, and 0, which stays exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-30) / 255
        return cls(scale, round(-low / scale))

    def __call__(self, rows: Tensor) -> Tensor:
        """Quantize rows (N, C) to uint8."""

        def scaled(x: Tensor) -> Tensor:  # the cast to uint8 drops the fraction
            return (x.float() * (1 / self.scale)).add_(self.zero_point + 0.5).clamp_(0, 255)

        return map_chunks(scaled, rows.shape[1], torch.empty_like(rows, dtype=torch.uint8), rows)


class Int8Weight(NamedTuple):
    """A weight as oneDNN stores it, with the scale and the zero point of each output channel (O,)."""

    packed: Tensor
    scales: Tensor
    zero_points: Tensor

    @classmethod
    def of(cls, weight: Tensor, pack: Callable[[Tensor, Tensor], Tensor]) -> Int8Weight:
        """Quantize a weight (O, ...) to -127..127."""
        scales = weight.flatten(1).abs().amax(1).clamp(min=1e-30) / 127
        values = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round_().to(torch.int8)
        return cls(pack(values, scales), scales, torch.zeros(len(scales), dtype=torch.int32))


class Int8Linear(nn.Module):
    """A linear layer (..., C) -> (..., O); with `outputs` its result is for the next layer in int8."""

    def __init__(self, layer: nn.Linear, inputs: Quantization, outputs: Quantization | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.inputs, self.outputs = inputs, outputs
        self.weight8 = Int8Weight.of(
            layer.weight.detach(), lambda weight, scales: torch.ops.onednn.qlinear_prepack(weight, None)
        )
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        rows = rows if rows.dtype == torch.uint8 else self.inputs(rows)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, *self.inputs, *self.weight8, self.bias, *_result_type(self.outputs), *NO_POST_OP
        )
        return result.view(*x.shape[:-1], self.out_features)


class Int8Conv2d(nn.Module):
    """A convolution with its norm and activation, (B, C, H, W) -> (B, O, H', W'); batch norm is folded in.

    With `outputs` its result is for the next layer in int8, and the activation must be a ReLU. `shape` is
    that of a usual input, for which oneDNN lays out the weights. Without it, each call may reorder them,
    which takes ten times as long as the products of a small map.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        inputs: Quantization,
        outputs: Quantization | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.stride = layer.stride
        self.geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        weight, self.bias, self.norm = _fold_batch_norm(layer)
        self.activation = getattr(layer, "activation", None)
        self.weight8 = Int8Weight.of(
            weight,
            lambda values, scales: torch.ops.onednn.qconv_prepack(
                values, scales, *inputs, *self.geometry, shape
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.uint8 else self._quantize(x)
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x,
            *self.inputs,
            *self.weight8,
            self.bias,
            *self.geometry,
            *_result_type(self.outputs),
            *NO_POST_OP,
        )
        if self.outputs is not None:
            return result
        if self.norm is not None:
            result = self.norm(result)
        return result if self.activation is None else self.activation(result)

    def _quantize(self, x: Tensor) -> Tensor:
        cells = x.permute(0, 2, 3, 1).contiguous()  # no copy of maps that are channels last
        return self.inputs(cells.flatten(0, 2)).view(cells.shape).permute(0, 3, 1, 2)


def _result_type(outputs: Quantization | None) -> tuple[float, int, torch.dtype]:
    """Return scale, zero point and type of a result: in floating point, that of the surrounding autocast."""
    if outputs is not None:
        return (*outputs, torch.uint8)
    is_half = torch.is_autocast_enabled("cpu")
    return 1.0, 0, torch.get_autocast_dtype("cpu") if is_half else torch.float32


def _fold_batch_norm(layer: nn.Conv2d) -> tuple[Tensor, Tensor, nn.Module | None]:
    """Return weight and bias of a convolution with its batch norm; other norms are left over."""
    weight, norm = layer.weight.detach(), getattr(layer, "norm", None)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if isinstance(norm, nn.BatchNorm2d):
        norm = FrozenBatchNorm2d.of(norm)
    if not isinstance(norm, FrozenBatchNorm2d):
        return weight, bias, norm
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale.view(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * scale, None


REPLACED: dict[type, Callable[..., nn.Module]] = {
    nn.Linear: Int8Linear,
    nn.Conv2d: Int8Conv2d,
    ConvNorm: Int8Conv2d,
}


def quantize_(model: MaskFormer, batches: Iterable[Tensor]) -> int:
    """Replace layers by ones in int8, in place, and return how many; it cannot be undone.

    The result predicts only; its other layers still compute in floating point.

    Args:
        model: a model in float32 for prediction, on the CPU.
        batches: normalized, padded images (B, 3, H, W), on which ranges of activations are measured.

    Raises:
        ValueError: the model is not on a CPU with VNNI, or is in training mode.
    """
    require_int8(model)
    ranges, shapes = _measure(model, batches)
    outputs = {layer: ranges[reader] for layer, reader in _readers(model) if reader in ranges}
    layers = [(name, layer) for name, layer in candidates(model) if layer in ranges]
    for name, layer in layers:
        parent, _, own_name = name.rpartition(".")
        usual = {"shape": shapes[layer]} if isinstance(layer, nn.Conv2d) else {}
        replacement = REPLACED[type(layer)](layer, ranges[layer], outputs.get(layer), **usual)
        setattr(model.get_submodule(parent), own_name, replacement)
    return len(layers)


def require_int8(model: MaskFormer) -> None:
    """Raise ValueError unless the model can predict in int8 here."""
    if model.training:
        raise ValueError("int8 is for prediction: call model.eval() first")
    if model.device.type != "cpu":
        raise ValueError(
            f"precision int8 is for MODEL.DEVICE cpu, not {model.device.type}, where bf16 is fast"
        )
    if not torch.cpu._is_vnni_supported():
        raise ValueError("precision int8 needs a processor with AVX512 VNNI; type fp32 or bf16")


def candidates(model: MaskFormer) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers, by name, that int8 is meant for."""
    for name, layer in model.named_modules():
        is_meant = name.startswith(tuple(f"{part}." for part in PARTS)) and not name.endswith(IN_FLOAT)
        if is_meant and isinstance(layer, nn.Conv2d | nn.Linear):
            yield name, layer


@torch.no_grad()
def _measure(
    model: MaskFormer, batches: Iterable[Tensor]
) -> tuple[dict[nn.Module, Quantization], dict[nn.Module, torch.Size]]:
    """Return how to quantize the inputs of each layer that is called and can be replaced, and their shape."""
    extremes: dict[nn.Module, list[Tensor]] = {}
    shapes: dict[nn.Module, torch.Size] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        extremes.setdefault(layer, []).extend(inputs[0].aminmax())
        shapes[layer] = inputs[0].shape

    layers = [layer for _, layer in candidates(model) if type(layer) in REPLACED]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        for images in batches:
            model.network(images)
    finally:
        for hook in hooks:
            hook.remove()
    stacked = {layer: torch.stack(values) for layer, values in extremes.items()}
    ranges = {
        layer: Quantization.of_range(float(values.min()), float(values.max()))
        for layer, values in stacked.items()
    }
    return ranges, shapes


def _readers(model: MaskFormer) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each layer of a chain that ends with its ReLU, with the layer that alone reads its result."""
    for module in model.modules():
        layers = [module.get_submodule(name) for name in CHAINS.get(type(module), ())]
        for layer, reader in pairwise(layers):
            if isinstance(getattr(layer, "norm", None), FOLDED_NORMS):
                yield layer, reader
