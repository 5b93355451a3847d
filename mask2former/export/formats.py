"""Formats of exported files, by the names that users type. This module imports no torch."""

from typing import NamedTuple


class Format(NamedTuple):
    """Files of a format.

    Attributes:
        suffixes: of the files; the first is what runtimes open.
        packages: of the extra `export`, that writing and checking need.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format((".onnx",), ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format((".xml", ".bin"), ("onnx", "onnxscript", "openvino")),
    "torch": Format((".pt2",)),
}
