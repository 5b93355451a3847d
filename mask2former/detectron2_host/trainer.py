"""`DefaultTrainer` with our loader, parameter groups, schedule, clipping and evaluators."""

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, DefaultTrainer
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mask2former.config import with_values
from mask2former.data import build_test_loader, build_train_loader
from mask2former.data.loader import Loader
from mask2former.data.records import Datasets
from mask2former.detectron2_host.evaluators import HostEvaluator, build_evaluator
from mask2former.detectron2_host.model import SemanticSegmentorWithTTA
from mask2former.engine.optim import build_clipper, build_optimizer, build_scheduler
from mask2former.engine.setup.resolve import with_schedule
from mask2former.engine.trainer import autocast_dtype
from mask2former.utils.sharding import unwrapped
from mask2former.utils.storage import is_remote
from mask2former.weights.load import load_weights

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer on a config of Mask2Former.

    The loop, hooks, checkpoints and logs are Detectron2's; what is learned from, and how, is what the
    standalone host does.

    Raises:
        ValueError: the config asks for what Detectron2's loop cannot do.
    """

    cfg: Any
    datasets: Datasets | None = None  # those that the command has read; loaders are built by class methods

    def __init__(self, cfg: Any) -> None:
        check_output_dir(cfg)
        cfg = with_schedule(cfg, self.datasets or Datasets())
        dtype = _checked_dtype(cfg)
        if cfg.VIS_PERIOD:
            logger.warning("VIS_PERIOD is %d, but Detectron2's loop draws none of our images", cfg.VIS_PERIOD)
        self._seed_is_drawn = cfg.SEED < 0
        seed = comm.shared_random_seed() if self._seed_is_drawn else cfg.SEED
        values = {"SOLVER.AMP.ENABLED": dtype is not None, "SEED": seed}
        super().__init__(with_values(cfg, values, "Trainer"))
        if isinstance(self._trainer, AMPTrainer):
            self._trainer.precision = dtype
            self._trainer.grad_scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)

    def resume_or_load(self, resume: bool = True) -> None:
        """With `resume` continue OUTPUT_DIR's last checkpoint, if there is one; else read MODEL.WEIGHTS.

        A resumed run sees the images that the unbroken one would have seen.

        Raises:
            WeightsError: MODEL.WEIGHTS cannot be read, or does not fit and MODEL.WEIGHTS_STRICT is set.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            self._trainer.reset_data_loader(
                lambda: build_train_loader(self.cfg, self.start_iter, datasets=self.datasets)
            )
        elif self.cfg.MODEL.WEIGHTS:
            load_weights(unwrapped(self.model), self.cfg.MODEL.WEIGHTS, strict=self.cfg.MODEL.WEIGHTS_STRICT)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        return {**super().state_dict(), "seed": self.cfg.SEED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written; with its seed, unless the config gives one."""
        super().load_state_dict(state_dict)
        if self._seed_is_drawn:
            seed = state_dict.get("seed", self.cfg.SEED)
            self.cfg = with_values(self.cfg, {"SEED": seed}, "the run that is continued")

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Loader:
        """Our batches of DATASETS.TRAIN, from the first on."""
        return build_train_loader(cfg, datasets=cls.datasets)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Loader:
        """Each image of the dataset once; with TEST.AUG, several views of it."""
        return build_test_loader(cfg, dataset_name, datasets=cls.datasets)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        """Our groups of parameters; each step clips the gradients first."""
        optimizer, clip = build_optimizer(cfg, model), build_clipper(cfg)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def clip_first(*_: Any) -> None:
            clip(parameters)

        optimizer.register_step_pre_hook(clip_first)
        # A fused optimizer would unscale float16's gradients itself, that is, behind the clipping.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    @classmethod
    def build_lr_scheduler(cls, cfg: Any, optimizer: Optimizer) -> LambdaLR:
        """The schedule of SOLVER.LR_SCHEDULER_NAME."""
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | Path | None = None
    ) -> HostEvaluator:
        """Our evaluators for the outputs that are on; files go below OUTPUT_DIR/inference."""
        folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference")
        several = len(cfg.DATASETS.TEST) > 1 and output_folder is None
        return build_evaluator(cfg, dataset_name, folder / dataset_name if several else folder)

    @classmethod
    def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None) -> Any:
        """Detectron2's evaluation loop over DATASETS.TEST, with TEST.AUG where that is on."""
        if cfg.TEST.AUG.ENABLED and not isinstance(model, SemanticSegmentorWithTTA):
            model = SemanticSegmentorWithTTA(cfg, model)
        return super().test(cfg, model, evaluators)


def check_output_dir(cfg: Any) -> None:
    """A ValueError where OUTPUT_DIR is an address: our evaluators' files would stay on this machine."""
    if is_remote(cfg.OUTPUT_DIR):
        raise ValueError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR}: in Detectron2 it must be a folder of this machine; without "
            "--host detectron2 an address works"
        )


def _checked_dtype(cfg: Any) -> torch.dtype | None:
    """The reduced precision that the config asks for on MODEL.DEVICE; None for float32."""
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}: Detectron2's loop does not "
            "accumulate; without --host detectron2 it works"
        )
    if cfg.SOLVER.STRATEGY != "ddp":
        raise ValueError(
            f"SOLVER.STRATEGY is '{cfg.SOLVER.STRATEGY}': Detectron2's processes hold all weights each, as "
            "'ddp' has it; without --host detectron2 it works"
        )
    device = torch.device(cfg.MODEL.DEVICE)
    dtype = autocast_dtype(cfg, device)
    if dtype is not None and device.type != "cuda":
        raise ValueError(
            f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE}: Detectron2's mixed precision needs a GPU, and "
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}"
        )
    return dtype
