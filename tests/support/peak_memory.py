"""The peak memory of the tensors that a computation creates."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Measure the peak memory of the tensors created inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        if storage._cdata not in self.known:
            size = storage.nbytes()
            self.known.add(storage._cdata)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.drop, storage._cdata, size)

    def drop(self, key, size):
        self.known.discard(key)
        self.alive -= size
