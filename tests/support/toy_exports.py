"""A network of two layers in the form of an exported file, for each runtime.

Mask logits are a convolution of each 4x4 pixels; class logits a linear function of the mean color.
"""

from pathlib import Path

import onnx
import openvino
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_checkpoint import METADATA, tiny_config
from torch import nn

from mask2former.export.metadata import KEY, build_metadata

QUERIES, CLASSES = 6, 5  # with "no object"
SUFFIXES = (".onnx", ".xml", ".pt2")


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(QUERIES, 3, 4, 4, generator=generator))
        self.colors = nn.Parameter(torch.randn(3, QUERIES * CLASSES, generator=generator))

    def forward(self, images):
        logits = images.mean((2, 3)) @ self.colors
        return logits.view(-1, QUERIES, CLASSES), nn.functional.conv2d(images, self.kernel, stride=4)


def metadata_text():
    return build_metadata(tiny_config(), METADATA).to_json()


def write_toy(folder, suffix, text=None):
    """Write `Toy` as "toy" + suffix with a metadata text, by default a valid one; "" writes none."""
    path = Path(folder) / f"toy{suffix}"
    text = metadata_text() if text is None else text
    writers = {".onnx": _write_onnx, ".xml": _write_openvino, ".pt2": _write_torch}
    writers[suffix](path, text)
    return path


def _write_onnx(path, text):
    model = onnx_toy()
    if text:
        helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)


def _write_openvino(path, text):
    model = openvino.Core().read_model(onnx_toy().SerializeToString())
    if text:
        model.set_rt_info(text, KEY)
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_torch(path, text):
    sides = {axis: 4 * torch.export.Dim(name, min=2) for axis, name in ((2, "h"), (3, "w"))}
    shapes = {"images": {0: torch.export.Dim("b", min=1), **sides}}
    program = torch.export.export(Toy(), (torch.zeros(2, 3, 32, 48),), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files={KEY: text} if text else None)


def onnx_toy():
    """Return `Toy` as an ONNX model without metadata."""
    toy = Toy()
    shape = torch.tensor([-1, QUERIES, CLASSES])
    constants = {"kernel": toy.kernel, "colors": toy.colors, "shape": shape}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "kernel"], ["mask_logits"], strides=[4, 4]),
            helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "colors"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["class_logits"]),
        ],
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, "h", "w"])],
        [
            helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, ["b", QUERIES, CLASSES]),
            helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, ["b", QUERIES, "y", "x"]),
        ],
        [
            numpy_helper.from_array(value.detach().numpy(), name)
            for name, value in {**constants, "axes": torch.tensor([2, 3])}.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
