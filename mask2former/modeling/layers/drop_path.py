"""Stochastic depth. "Deep Networks with Stochastic Depth" (ECCV 2016)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Random dropping of a residual branch for whole images in training; kept branches are scaled up.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop path rate must be in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        """Return the rate, for print(model)."""
        return f"{self.rate:.3f}"
