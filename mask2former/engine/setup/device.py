"""The device that a process computes on."""

import torch

from mask2former.utils.comm import world_size


def resolve_device(name: str) -> torch.device:
    """Return the device of MODEL.DEVICE; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ValueError: not a device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is '{name}', which is not a device: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"MODEL.DEVICE is '{name}', but this machine has {torch.cuda.device_count()} GPUs")
    return device


def launched_device(name: str, launched_on: str, num_gpus: int | None) -> str:
    """Return MODEL.DEVICE for a process that was launched on "cuda" or "cpu"; the config has `name`.

    A process launched on the CPU computes there. A single process launched on a GPU may compute on the CPU,
    unless --num-gpus (`num_gpus`) asks for GPUs. Several processes on GPUs communicate through their GPUs.

    Raises:
        ValueError: the two contradict each other, or as `resolve_device`.
    """
    wanted = resolve_device(name).type
    if launched_on == "cuda" and wanted == "cpu" and (num_gpus or world_size() > 1):
        flag = f"--num-gpus {num_gpus}" if num_gpus else "the processes were launched on GPUs"
        raise ValueError(
            f"{flag}, but MODEL.DEVICE is '{name}': for processes on the CPU give --num-processes"
        )
    return "cpu" if launched_on == "cpu" and wanted == "cuda" else name
