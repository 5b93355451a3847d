"""Exported files opened and run: ONNX Runtime, OpenVINO and torch.export, told by the file's suffix.

The runtimes are extras, imported when they are used. They compute on as many threads as torch.

Shapes: `B` images, `Q` queries, `K` classes, `h, w` the image's sides, `H, W` those of the padded one.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from mask2former.engine.setup.device import resolve_device
from mask2former.export.metadata import KEY, ExportMetadata, parse_metadata
from mask2former.utils.messages import shortened
from mask2former.weights.contents import WeightsError, is_exported
from mask2former.weights.read import local_file

INPUT, OUTPUTS = "images", ("class_logits", "mask_logits")
INSTALL = "pip install 'mask2former[export]'"
LONGEST_REASON = 200  # characters of an error of a runtime

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


class MissingRuntimeError(ModuleNotFoundError):
    """A package of the extra `export` that is not installed."""


@dataclass(frozen=True)
class Exported:
    """A file that `mask2former export` wrote, ready to run.

    Attributes:
        device: where images are expected and logits returned.
        run: as `logits`, for images on the device.
    """

    metadata: ExportMetadata
    device: torch.device
    run: Network

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (B, Q, K+1) and mask logits (B, Q, H/4, W/4), float32.

        `images` (B, 3, h, w) are normalized. H and W are their sides, rounded up to multiples of the
        metadata's size_divisibility.
        """
        class_logits, mask_logits = self.run(images.float().contiguous())
        return class_logits.float(), mask_logits.float()


class Options(NamedTuple):
    """How a file is run: `exact` in float32 also where the hardware multiplies bfloat16."""

    device: torch.device
    threads: int
    exact: bool


def open_exported(
    source: str | Path,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    exact: bool = False,
) -> Exported:
    """Open an exported file: .onnx, .xml (of OpenVINO, with its .bin) or .pt2 (of torch.export).

    Open a .pt2 only if you trust where it comes from: torch.export runs code that such a file holds.

    Args:
        device: as MODEL.DEVICE; "auto" is a GPU if there is one that the runtime computes on.
        precision: "bf16" lets OpenVINO compute in bfloat16, where the processor has it.
        exact: OpenVINO computes in float32 even if the file holds 16-bit weights.

    Raises:
        WeightsError: the file is missing, truncated or damaged, or `mask2former export` did not write it.
        MissingRuntimeError: its runtime is not installed.
        ValueError: the runtime does not compute on the device, or not in that precision.
    """
    file = local_file(source)
    runtime = _runtime(file)
    metadata = read_metadata(file)
    if precision != "fp32" and runtime is not RUNTIMES[".xml"]:
        raise ValueError(
            f"{file}: precision '{precision}' is for files of OpenVINO alone; the precision of others is "
            "chosen by `mask2former export`"
        )
    exact = exact or (precision == "fp32" and not metadata.half)
    options = Options(runtime.resolve(device), torch.get_num_threads(), exact)
    try:
        run = runtime.open(file, options)
    except (ImportError, MemoryError, WeightsError):
        raise
    except Exception as error:  # each runtime reports damage by errors of its own
        raise _damaged(file, runtime, error) from error
    return Exported(metadata, options.device, run)


def read_metadata(file: Path) -> ExportMetadata:
    """Return what a local exported file holds beside its graph, which is not run.

    Raises:
        WeightsError: the file is truncated, damaged, or not one of `mask2former export`.
        MissingRuntimeError: the package that reads it is not installed.
    """
    runtime = _runtime(file)
    try:
        text = runtime.read_text(file)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # as above
        raise _damaged(file, runtime, error) from error
    return parse_metadata(text, str(file))


def _onnx_text(file: Path) -> str | None:
    model = package("onnx").load(str(file), load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _openvino_text(file: Path) -> str | None:
    entry = ElementTree.parse(file).find(f"./rt_info/{KEY}")
    return None if entry is None else entry.get("value")


def _torch_text(file: Path) -> str | None:
    with zipfile.ZipFile(file) as archive:
        path = next((name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")), None)
        return None if path is None else archive.read(path).decode()


def _open_onnx(file: Path, options: Options) -> Network:
    onnxruntime = package("onnxruntime")
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.log_severity_level = 3  # errors
    providers = ["CUDAExecutionProvider"] if options.device.type == "cuda" else []
    session = onnxruntime.InferenceSession(
        str(file), session_options, providers=[*providers, "CPUExecutionProvider"]
    )

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = session.run(OUTPUTS, {INPUT: images.cpu().numpy()})
        return _on(images.device, logits)

    return run


def _open_openvino(file: Path, options: Options) -> Network:
    openvino = package("openvino")
    weights = file.with_suffix(".bin")
    if not weights.is_file():
        raise WeightsError(file, f"the weights that belong to it are missing: no file {weights}")
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": options.threads}
    if options.exact:
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(str(file), "CPU", properties)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        found = model({INPUT: images.numpy()})
        return _on(images.device, [found[name] for name in OUTPUTS])

    return run


def _open_torch(file: Path, options: Options) -> Network:
    program = torch.export.load(str(file))
    if options.device.type != "cpu":
        program = move_to_device_pass(program, options.device)
    module = program.module(check_guards=False)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return module(images)

    return run


def _on(device: torch.device, logits: Any) -> tuple[Tensor, Tensor]:
    class_logits, mask_logits = (torch.from_numpy(array).to(device) for array in logits)
    return class_logits, mask_logits


def _has_cuda_provider() -> bool:
    return "CUDAExecutionProvider" in package("onnxruntime").get_available_providers()


class Runtime(NamedTuple):
    """What opens the files of one suffix.

    Attributes:
        read_text: the file -> its metadata, None if there is none.
        runs_on_gpu: whether the installed runtime computes on NVIDIA GPUs.
        without_gpu: what to do where it does not.
    """

    name: str
    read_text: Callable[[Path], str | None]
    open: Callable[[Path, Options], Network]
    runs_on_gpu: Callable[[], bool]
    without_gpu: str = ""

    def resolve(self, name: str) -> torch.device:
        """Return the device of MODEL.DEVICE for this runtime; "auto" is a GPU if it computes on one.

        Raises:
            ValueError: not a device of this machine, or not one that the runtime computes on.
        """
        device = resolve_device(name)
        if device.type == "cpu" or self.runs_on_gpu():
            return device
        if name != "auto":
            raise ValueError(
                f"MODEL.DEVICE is '{name}', but {self.name} computes on the CPU here{self.without_gpu}"
            )
        return torch.device("cpu")


RUNTIMES = {
    ".onnx": Runtime(
        "ONNX Runtime",
        _onnx_text,
        _open_onnx,
        _has_cuda_provider,
        ": install onnxruntime-gpu in the place of onnxruntime",
    ),
    ".xml": Runtime("OpenVINO", _openvino_text, _open_openvino, lambda: False),
    ".pt2": Runtime("torch.export", _torch_text, _open_torch, lambda: True),
}


def _runtime(file: Path) -> Runtime:
    if not is_exported(file):
        raise WeightsError(file, f"is not an exported file, which ends in {', '.join(RUNTIMES)}")
    return RUNTIMES[file.suffix.lower()]


def package(name: str) -> Any:
    """Import a package of the extra `export`, or a module of one.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.split(".")[0]):
            raise
        raise MissingRuntimeError(f"{name} is not installed, which opens exported files: {INSTALL}") from None


def _damaged(file: Path, runtime: Runtime, error: Exception) -> WeightsError:
    reason = shortened(" ".join(str(error).split()), LONGEST_REASON)
    return WeightsError(file, f"is truncated, damaged or no file of {runtime.name} ({reason})")
