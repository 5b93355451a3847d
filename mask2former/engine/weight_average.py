"""Exponential moving average of the weights: SOLVER.EMA_DECAY.

The averaged model is the one that is evaluated and that a checkpoint's "model" holds. The weights that
training goes on with are in the checkpoint beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mask2former.engine.checkpoint.sharded import UNAVERAGED
from mask2former.utils.sharding import local_part


def decay_after(steps: int, decay: float) -> float:
    """Return the share of the old average in the new one: less than `decay` in the first steps.

    A constant share would keep the initial weights for long. This is the rule of TensorFlow's
    ExponentialMovingAverage (`num_updates`).
    """
    return min(decay, (1 + steps) / (10 + steps))


class WeightAverage:
    """Average of the trained parameters of `model`, which may be sharded; with a `decay` of 0 there is none.

    Buffers and frozen parameters are not averaged: the averaged model has those of the trained one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = [p for p in model.parameters() if p.requires_grad] if decay else []
        self._averages = {parameter: parameter.detach().clone() for parameter in trained}
        # A shared parameter has several names, and each is in the state dict
        named = model.named_parameters(remove_duplicate=False)
        self._names = {name: parameter for name, parameter in named if parameter in self._averages}

    def restart(self) -> None:
        """Start again from the weights that the model has now."""
        with torch.no_grad():
            for parameter, average in self._averages.items():
                local_part(average).copy_(local_part(parameter))

    def add(self, steps: int) -> None:
        """Add the weights that the model has after `steps` steps."""
        if not self._averages:
            return
        with torch.no_grad():
            averages = [local_part(average) for average in self._averages.values()]
            weights = [local_part(parameter) for parameter in self._averages]
        get_ema_multi_avg_fn(decay_after(steps, self.decay))(averages, weights, steps)

    @contextmanager
    def in_model(self) -> Iterator[dict[str, Any]]:
        """Within the block the model has the averaged weights.

        The value is what a checkpoint keeps of the trained ones: one entry, or none without an average.
        """
        self._swap()
        try:
            names = {name: self._averages[parameter] for name, parameter in self._names.items()}
            yield {UNAVERAGED: names} if names else {}
        finally:
            self._swap()

    def tensors(self) -> list[Tensor]:
        """Return the averages, which a checkpoint holds in addition to the weights."""
        return list(self._averages.values())

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the values of the weights and of the averages; twice is exactly nothing."""
        for parameter, average in self._averages.items():
            weights = local_part(parameter).clone()
            local_part(parameter).copy_(local_part(average))
            local_part(average).copy_(weights)
