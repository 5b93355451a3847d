"""Recognition of failed memory allocations."""

import torch

# Texts of PyTorch's RuntimeErrors: of the CUDA driver, and of the CPU's allocator
MESSAGES = ("out of memory", "allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed, on a GPU or on the host (which has no error class of its own)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)
