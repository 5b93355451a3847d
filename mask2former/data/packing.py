"""Batches that worker processes send: all tensors in one block of shared memory, masks with one bit a pixel.

A block costs a file descriptor, a connection between the processes, and fresh pages of memory. With one block
for each tensor, and a byte a pixel, sending took as long as making the samples.
"""

import io
import itertools
import math
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mask2former.utils.label_maps import Array

ALIGNMENT = 64  # bytes


class PackedBatch(NamedTuple):
    """A pickled batch; array i of it is `sizes[i]` bytes of the shared `block`, one array after the other."""

    pickled: bytes
    sizes: list[int]
    block: Tensor


class _Pickler(pickle.Pickler):
    """Pickles tensors of the CPU as arrays, and bool ones as bits."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:  # a subclass is pickled as torch does it
            return NotImplemented
        if value.dtype == torch.bool:
            return _from_bits, (np.packbits(value.numpy()), tuple(value.shape))
        return torch.from_numpy, (value.numpy(),)


def _from_bits(bits: Array, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape))


def pack(batch: Sequence[Any]) -> PackedBatch:
    """Return a batch of samples in the form that workers send."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(list(batch))
    arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    sizes = [array.size for array in arrays]
    block = torch.empty(sum(map(_aligned, sizes)), dtype=torch.uint8).share_memory_()
    for part, array in zip(_parts(block, sizes), arrays, strict=True):
        part[:] = array
    return PackedBatch(stream.getvalue(), sizes, block)


def unpack(packed: PackedBatch) -> list[Any]:
    """Return the samples, whose tensors lie in the block; masks alone are copied."""
    batch: list[Any] = pickle.loads(packed.pickled, buffers=_parts(packed.block, packed.sizes))
    return batch


def _parts(block: Tensor, sizes: Sequence[int]) -> list[Array]:
    starts = itertools.accumulate(map(_aligned, sizes), initial=0)
    return [block.numpy()[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT
