"""Writing of a graph in each format, with its metadata."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from mask2former.export.formats import FORMATS
from mask2former.export.graph import HalfGraph, onnx_program, torch_program
from mask2former.export.metadata import KEY
from mask2former.export.runtimes import package


def _write_onnx(graph: nn.Module, divisor: int, path: Path, text: str | None) -> None:
    program = onnx_program(graph, divisor)
    for node in program.model.graph:
        node.metadata_props.clear()  # where in the code it comes from, with paths of this machine
    if text is not None:
        program.model.metadata_props[KEY] = text
    program.save(path)


def _write_openvino(graph: nn.Module, divisor: int, path: Path, text: str) -> None:
    with TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder, "model.onnx")
        _write_onnx(graph, divisor, source, None)
        convert_to_openvino(source, path, text, half=isinstance(graph, HalfGraph))


def convert_to_openvino(source: Path, path: Path, text: str, *, half: bool = False) -> None:
    """Write an ONNX file in the form of OpenVINO, with a metadata text, and weights in 16 bits if `half`."""
    openvino = package("openvino")
    model = openvino.convert_model(str(source))
    model.set_rt_info(text, KEY)
    openvino.save_model(model, str(path), compress_to_fp16=half)  # `model` maps `source` until it is gone


def _write_torch(graph: nn.Module, divisor: int, path: Path, text: str) -> None:
    program = torch_program(graph, divisor)
    program.example_inputs = None  # they would be in the file
    torch.export.save(program, path, extra_files={KEY: text})


# Graph, the model's divisibility, path, metadata -> files
WRITERS: dict[str, Callable[[nn.Module, int, Path, str], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
}


def require_packages(name: str) -> None:
    """Import what a format needs; raise MissingRuntimeError if it is not installed."""
    for needed in FORMATS[name].packages:
        package(needed)
