"""The training loop: forward, backward, clip, update; everything else is a hook.

One collective a step averages losses and gradient norm over ranks, for the log. A non-finite value on any
rank makes these means non-finite, so all ranks skip the step together.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mask2former.data.clips import first_frame
from mask2former.data.loader import Batch
from mask2former.engine.errors import TrainingError
from mask2former.engine.optim import Clipper
from mask2former.engine.weight_average import WeightAverage
from mask2former.modeling.precision import PRECISIONS
from mask2former.utils.comm import all_reduce_sum, gather_objects, rank, set_status, world_size
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.sharding import unwrapped

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_SKIPS = 10


@dataclass
class StepRecord:
    """One step: this rank's images, losses averaged over ranks, learning rate, seconds."""

    batch: Batch
    losses: dict[str, float]
    grad_norm: float
    learning_rate: float
    data_seconds: float
    compute_seconds: float
    skipped: bool

    def scalars(self) -> dict[str, float]:
        """Return the scalars to log."""
        return {"total_loss": sum(self.losses.values()), **self.losses, "grad_norm": self.grad_norm}


@dataclass
class Window:
    """Sums of scalars since the last log line; part of a checkpoint, so that a resumed run logs the same."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Add one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means of the added steps."""
        return {name: total / self.count for name, total in self.sums.items()}


class Hook:
    """Actions around the training loop; every rank runs every hook."""

    def before_train(self, trainer: "Trainer") -> None:
        """Run once, before this process's first step."""

    def after_step(self, trainer: "Trainer") -> None:
        """Run after each step; `trainer.done` includes it and `trainer.last` describes it."""

    def after_train(self, trainer: "Trainer") -> None:
        """Run once, after the last step of the run."""


def is_due(steps: int, period: int) -> bool:
    """Return True every `period` steps; never if `period` <= 0."""
    return period > 0 and steps > 0 and steps % period == 0


def autocast_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Return the reduced precision of SOLVER.AMP on `device`; None for float32.

    Raises:
        ValueError: SOLVER.AMP.DTYPE is unknown.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name != "auto":
        if name not in PRECISIONS:
            raise ValueError(f"SOLVER.AMP.DTYPE is '{name}'; known are: auto, {', '.join(PRECISIONS)}")
        return None if PRECISIONS[name] == torch.float32 else PRECISIONS[name]
    if device.type != "cuda":
        return None
    native_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native_bf16 else torch.float16


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Yield `batch` in `parts` consecutive micro-batches of almost equal length."""
    for part in range(parts):
        yield batch[part * len(batch) // parts : (part + 1) * len(batch) // parts]


def describe_image(sample: dict[str, Any]) -> str:
    """Return file name, size (H x W) and number of objects of a training sample; of a clip's first frame."""
    frame = first_frame(sample)
    name = frame.get("file_name", "an image without a file name")
    height, width = frame["image"].shape[-2:]
    objects = len(frame["instances"]) if "instances" in frame else 0
    return f"{name} ({height} x {width}, {objects} objects)"


class Trainer:
    """Training loop over `model` until `done`, the number of finished steps, reaches `max_iter`.

    `model(batch)` returns weighted losses by name; their sum is minimized. With `accumulation` n, a step's
    images pass in n micro-batches, and their losses are averaged, weighted by the micro-batches' lengths.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        clip: Clipper,
        max_iter: int,
        dtype: torch.dtype | None = None,
        accumulation: int = 1,
        seed: int = 0,
        ema_decay: float = 0.0,
    ) -> None:
        self.model, self.optimizer, self.scheduler, self.clip = model, optimizer, scheduler, clip
        self.max_iter, self.dtype, self.accumulation, self.seed = max_iter, dtype, accumulation, seed
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.average = WeightAverage(self.plain_model, ema_decay)
        self.done = 0
        self.window = Window()
        self.last: StepRecord | None = None
        self._consecutive_skips = 0
        self._clipped = list(model.parameters())  # here, since it walks through all modules

    @property
    def plain_model(self) -> nn.Module:
        """Return the model without DDP's wrapper."""
        return unwrapped(self.model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the weights; `torch.load(weights_only=True)` reads it."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": self.done - 1,
            "window": {"sums": self.window.sums, "count": self.window.count},
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the step at which `state` was taken.

        Learning rates, weight decay and schedule are this trainer's, not those of `state`, so that a run may
        be resumed with others.
        """
        groups = self.optimizer.param_groups
        settings = [{name: group[name] for name in group.keys() - {"params"}} for group in groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self.scheduler.last_epoch = state["iteration"]
        self.scheduler.step()
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.window = Window(dict(state["window"]["sums"]), state["window"]["count"])
        self.done = state["iteration"] + 1

    def train(self, batches: Iterable[Batch], hooks: Sequence[Hook] = ()) -> None:
        """Run the remaining steps; `batches` starts with the one of step `self.done`.

        Raises:
            TrainingError: out of memory, or ten steps in a row without a finite loss and gradient.
        """
        self.model.train()
        for hook in hooks:
            hook.before_train(self)
        stream = iter(batches)
        while self.done < self.max_iter:
            self.last = self._run_step(stream)
            self.done += 1
            if not self.last.skipped:
                self.window.add(self.last.scalars())
            for hook in hooks:
                hook.after_step(self)
        for hook in hooks:
            hook.after_train(self)

    def _run_step(self, stream: Iterator[Batch]) -> StepRecord:
        started = time.perf_counter()
        set_status(f"reading the images of step {self.done}")
        batch = next(stream)
        set_status(f"in step {self.done} with {', '.join(map(describe_image, batch))}")
        loaded = time.perf_counter()
        # Drop path draws from the global generator: seeded by step, a resumed run draws the same.
        torch.manual_seed((self.seed + self.done) * world_size() + rank())
        try:
            terms = self._backward(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"out of memory in step {self.done} on {', '.join(map(describe_image, batch))}. Raise "
                f"SOLVER.ACCUMULATION_STEPS (now {self.accumulation}) or lower SOLVER.IMS_PER_BATCH; set "
                "MODEL.ACTIVATION_CHECKPOINTING True; or lower INPUT.IMAGE_SIZE, INPUT.CROP.SIZE or "
                f"INPUT.MIN_SIZE_TRAIN. ({error})"
            ) from error
        learning_rate = self.learning_rate
        losses, grad_norm, skipped = self._update(batch, terms)
        computed = time.perf_counter()
        times = (loaded - started, computed - loaded)
        return StepRecord(batch, losses, grad_norm, learning_rate, *times, skipped)

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the step's gradients; return the losses without their graph."""
        terms: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(split(batch, self.accumulation), start=1):
            share = len(micro_batch) / len(batch)
            with self._gradient_exchange(number == self.accumulation):
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                    losses = {name: loss * share for name, loss in self.model(micro_batch).items()}
                self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
            for name, loss in losses.items():
                terms[name] = terms[name] + loss.detach() if name in terms else loss.detach()
        return terms

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[None]:
        """Let DDP exchange gradients in the last backward pass of a step only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _update(self, batch: Batch, terms: dict[str, Tensor]) -> tuple[dict[str, float], float, bool]:
        """Clip and step, unless a rank has a non-finite value; return mean losses, gradient norm, skipped."""
        self.scaler.unscale_(self.optimizer)
        norm = self.clip(self._clipped)
        local = torch.stack([*terms.values(), norm]).float()
        *means, grad_norm = (all_reduce_sum(local) / world_size()).tolist()
        skipped = not all(map(math.isfinite, (*means, grad_norm)))
        only_gradient = skipped and all(map(math.isfinite, means))
        if only_gradient and self.scaler.is_enabled() and self.scaler.get_scale() > 1:
            logger.info("step %d skipped: float16 overflowed, its scale is lowered", self.done)
        elif skipped:
            self._skip(batch, [*terms, "the gradient"], local.tolist())
        else:
            self.scaler.step(self.optimizer)
            self.average.add(self.done + 1)
            self._consecutive_skips = 0
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return dict(zip(terms, means, strict=True)), grad_norm, skipped

    def _skip(self, batch: Batch, names: list[str], values: list[float]) -> None:
        """Log which images and which losses were not finite; raise after too many skips in a row."""
        bad = [name for name, value in zip(names, values, strict=True) if not math.isfinite(value)]
        self._consecutive_skips += 1
        report = f"{', '.join(bad)} not finite on {', '.join(map(describe_image, batch))}" if bad else ""
        reports = "; ".join(filter(None, gather_objects(report)))
        logger.warning("step %d skipped: %s", self.done, reports)
        if self._consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            remedy = f"Lower SOLVER.BASE_LR (the rate is {self.learning_rate:.3g})"
            remedy += "" if self.dtype is None else " or set SOLVER.AMP.ENABLED False"
            raise TrainingError(
                f"training stopped at step {self.done}: {MAX_CONSECUTIVE_SKIPS} steps in a row were not "
                f"finite. {remedy}. The last: {reports}"
            )

    @property
    def learning_rate(self) -> float:
        """Return the highest rate of all groups: that of everything but the backbone."""
        return max(group["lr"] for group in self.optimizer.param_groups)
