"""An exported ONNX file quantized to int8, with ranges of activations measured on images.

Convolutions and linear layers of the backbone and the pixel decoder, most of the computation, get 8-bit
weights and inputs. The transformer decoder and the layers that predict sampling points stay in float: where
detection transformers are quantized as a whole, their accuracy is lost.

Shapes: `B` images, `H, W` the padded image's sides.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from mask2former.data.mapper import build_test_mapper
from mask2former.engine.setup.precision import calibration_batches
from mask2former.export.formats import FORMATS
from mask2former.export.runtimes import INPUT, OUTPUTS, Exported, open_exported, package, read_metadata
from mask2former.export.write import export_model
from mask2former.export.writers import convert_to_openvino
from mask2former.modeling.int8 import candidates
from mask2former.modeling.mask_former import MaskFormer
from mask2former.utils.atomic_files import UNFINISHED, atomic_path

logger = logging.getLogger(__name__)

COMPARED_IMAGES = 8
OPERATORS = ["Conv", "MatMul", "Gemm"]
# Without this mark, quantize_static logs through Python's root logger that it would like one.
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


class Difference(NamedTuple):
    """How far int8 logits are from float ones: the largest difference, and the correlation."""

    largest: float
    correlation: float


def export_int8(
    cfg: CfgNode,
    model: MaskFormer,
    metadata: Mapping[str, Any],
    path: Path,
    kind: str,
    images: Sequence[Path],
) -> dict[str, Difference]:
    """Write a model on the CPU in int8 to `path`, and return how far its logits are from those in float.

    Before it is quantized, the file in float is compared with the model. Nothing is left behind if that
    fails.

    Args:
        metadata: of the classes, as checkpoints hold it.
        kind: "onnx" or "openvino".
        images: those that ranges of activations are measured on.

    Raises:
        As `export_model`; ImageError if a file is not an image.
    """
    prepare = partial(calibration_batches, model, build_test_mapper(cfg))
    with TemporaryDirectory(prefix=f"{UNFINISHED}-", dir=path.parent) as folder:
        exact, quantized = (Path(folder, name).with_suffix(".onnx") for name in ("float", "int8"))
        export_model(cfg, model, metadata, exact, "onnx")
        batches = tqdm(prepare(images), "calibration", total=len(images), unit="image")
        layers = quantize(exact, quantized, model, batches)
        if kind == "openvino":
            text = read_metadata(exact).to_json()
            convert_to_openvino(quantized, quantized.with_suffix(".xml"), text)
        logger.info("%s: int8 in %d layers, with %d images", path, len(layers), len(images))
        written = quantized.with_suffix(path.suffix)
        files = open_exported(exact), open_exported(written)
        found = differences(*files, prepare(images[:COMPARED_IMAGES]))
        for suffix in reversed(FORMATS[kind].suffixes):  # the file that is opened moves last
            os.replace(written.with_suffix(suffix), path.with_suffix(suffix))
    return found


def quantize(source: Path, target: Path, model: MaskFormer, batches: Iterable[Tensor]) -> list[str]:
    """Write an exported ONNX file in int8, and return the names of the layers that are quantized.

    Weights have 7 bits of the 8, so that no x86 processor saturates when it adds products, and one scale for
    each output channel.

    Args:
        model: the model that `source` was exported from; its weights tell which node is which layer.
        batches: normalized, padded images (B, 3, H, W), on which ranges of activations are measured.
    """
    onnx, quantization = package("onnx"), package("onnxruntime.quantization")
    graph_model = onnx.load(str(source))
    layers = quantized_layers(graph_model.graph, model)
    properties = {entry.key: entry.value for entry in graph_model.metadata_props}
    onnx.helper.set_model_props(graph_model, {**properties, **PREPARED})
    with atomic_path(target) as partial:
        quantization.quantize_static(
            graph_model,
            partial,
            _Reader(batches),
            op_types_to_quantize=OPERATORS,
            nodes_to_quantize=list(layers),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # ONNX Runtime needs it for convolutions in int8, but not for products of matrices.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
        )
        quantized = onnx.load(str(partial))
        onnx.helper.set_model_props(quantized, properties)
        onnx.save(quantized, str(partial))
    return list(layers.values())


class _Reader:
    """Batches in the form that `quantize_static` asks for."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.cpu().numpy()}


def quantized_layers(graph: Any, model: MaskFormer) -> dict[str, str]:
    """Return node -> layer for the nodes of an ONNX graph that are to be quantized.

    Convolutions keep the name of their weight when a batch norm is folded into it. Linear layers lose it when
    their weight is transposed, but keep its values.
    """
    wanted = dict(candidates(model))
    names = {f"{name}.weight": name for name in wanted}
    digests = {
        _digest(weight): name
        for name, layer in wanted.items()
        if isinstance(layer, nn.Linear)
        for weight in (layer.weight.detach().cpu().numpy(), layer.weight.detach().cpu().numpy().T)
    }
    weights = {weight.name: weight for weight in graph.initializer}
    concatenated = {node.output[0] for node in graph.node if node.op_type == "Concat"}
    found: dict[str, str | None] = {}
    for node in graph.node:
        # OpenVINO would move the quantization of concatenated maps before the concatenation, and fails.
        if node.op_type not in OPERATORS or node.input[1] not in weights or node.input[0] in concatenated:
            continue
        weight = weights[node.input[1]]
        suffix = next((name for name in names if f".{weight.name}".endswith(f".{name}")), None)
        found[node.name] = names[suffix] if suffix else digests.get(_digest(_array(weight)))
    return {node: layer for node, layer in found.items() if layer}


def _digest(array: NDArray[Any]) -> bytes:
    shape = str(array.shape).encode()
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes() + shape).digest()


def _array(weight: Any) -> NDArray[Any]:
    return package("onnx").numpy_helper.to_array(weight)


def differences(exact: Exported, quantized: Exported, batches: Iterable[Tensor]) -> dict[str, Difference]:
    """Compare the outputs of two files, by name, on images (B, 3, H, W)."""
    pairs = [zip(exact.logits(images), quantized.logits(images), strict=True) for images in batches]
    outputs = zip(OUTPUTS, zip(*pairs, strict=True), strict=True)
    return {name: _difference(*map(_flat, zip(*logits, strict=True))) for name, logits in outputs}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _difference(exact: Tensor, quantized: Tensor) -> Difference:
    correlation = torch.corrcoef(torch.stack((exact, quantized)).double())[0, 1]
    return Difference(float((exact - quantized).abs().max()), float(correlation))


def report(found: Mapping[str, Difference]) -> str:
    """Return the differences in words, with the command that says what they mean."""
    parts = [
        f"{name} by at most {d.largest:.2g} (correlation {d.correlation:.4f})" for name, d in found.items()
    ]
    return (
        f"int8 changes {' and '.join(parts)}. To see what that does to AP, PQ and mIoU, type "
        "mask2former evaluate ... MODEL.WEIGHTS FILE"
    )
