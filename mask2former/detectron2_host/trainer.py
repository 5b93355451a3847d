"""`DefaultTrainer` with our loader, parameter groups, schedule, clipping and evaluators."""

import logging
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import detectron2.evaluation
import torch
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer

from mask2former.config import with_values
from mask2former.config.detectron2_keys import HOST_MODELS
from mask2former.data import MetadataCatalog, build_test_loader, build_train_loader
from mask2former.data.loader import Loader
from mask2former.data.records import Datasets
from mask2former.detectron2_host.model import SemanticSegmentorWithTTA
from mask2former.detectron2_host.type_conversion import inputs_to_detectron2
from mask2former.engine import evaluate
from mask2former.engine.hooks.mask_annealing import anneal_masks, mask_schedule
from mask2former.engine.optim import build_clipper, build_optimizer, build_scheduler
from mask2former.engine.setup.resolve import with_schedule
from mask2former.engine.trainer import autocast_dtype
from mask2former.evaluation.coco.ap import COCOEvaluator
from mask2former.evaluation.evaluator import DatasetEvaluator, Results
from mask2former.utils.sharding import unwrapped
from mask2former.utils.storage import is_remote
from mask2former.weights.load import load_weights

logger = logging.getLogger(__name__)


class HostEvaluator(detectron2.evaluation.DatasetEvaluator):
    """An evaluator of ours for Detectron2's `inference_on_dataset`."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """Return task -> metric -> value; empty except on the main process."""
        return self._evaluator.evaluate()


class InstanceSegEvaluator(HostEvaluator):
    """AP of instance masks, also for a model with stuff classes.

    The dataset's metadata must have `json_file` and `thing_dataset_id_to_contiguous_id`.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        super().__init__(COCOEvaluator(metadata=metadata, output_dir=output_dir))


def build_evaluator(cfg: Any, dataset_name: str, output_dir: str | Path) -> HostEvaluator:
    """Build our evaluators of a dataset for the outputs that are on.

    Raises:
        ValueError: the dataset has no known evaluator type, or none for these outputs.
    """
    return HostEvaluator(evaluate.build_evaluator(cfg, dataset_name, Path(output_dir)))


class HostMaskAnnealing(HookBase):
    """The removal of EoMT's attention masks, as in the standalone host; for other models it does nothing."""

    def __init__(self, cfg: Any) -> None:
        self._schedule = mask_schedule(cfg)

    def before_train(self) -> None:
        self._set(self.trainer.iter)

    def after_step(self) -> None:
        self._set(self.trainer.iter + 1)

    def _set(self, step: int) -> None:
        anneal_masks(unwrapped(self.trainer.model), self._schedule, step)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for a config of Mask2Former, or of a model of Detectron2 on our data.

    The loop, hooks, checkpoints and logs are Detectron2's. Data, optimization and metrics are those of the
    standalone host.

    Raises:
        ValueError: the config asks for something that Detectron2's loop cannot do.
    """

    cfg: Any
    datasets: Datasets | None = None  # those that the command has read; class methods build the loaders

    def __init__(self, cfg: Any) -> None:
        check_output_dir(cfg)
        cfg = with_schedule(cfg, self.datasets or Datasets())
        dtype = _checked_dtype(cfg)
        if cfg.VIS_PERIOD:
            logger.warning("VIS_PERIOD is %d, but Detectron2's loop saves no images", cfg.VIS_PERIOD)
        self._seed_is_random = cfg.SEED < 0
        seed = comm.shared_random_seed() if self._seed_is_random else cfg.SEED
        super().__init__(with_values(cfg, {"SOLVER.AMP.ENABLED": dtype is not None, "SEED": seed}, "Trainer"))
        if isinstance(self._trainer, AMPTrainer):
            self._trainer.precision = dtype
            self._trainer.grad_scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)

    def resume_or_load(self, resume: bool = True) -> None:
        """With `resume` continue from the last checkpoint in OUTPUT_DIR, if any; else load MODEL.WEIGHTS.

        A resumed run sees the same images as an uninterrupted run.

        Raises:
            WeightsError: MODEL.WEIGHTS cannot be read, or does not fit and MODEL.WEIGHTS_STRICT is set.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            self._trainer.reset_data_loader(
                lambda: build_train_loader(self.cfg, self.start_iter, datasets=self.datasets)
            )
        elif self.cfg.MODEL.META_ARCHITECTURE in HOST_MODELS:
            super().resume_or_load(resume=False)
        elif self.cfg.MODEL.WEIGHTS:
            load_weights(unwrapped(self.model), self.cfg.MODEL.WEIGHTS, strict=self.cfg.MODEL.WEIGHTS_STRICT)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint other than weights; ours adds the seed."""
        return {**super().state_dict(), "seed": self.cfg.SEED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint, and its seed unless the config gives one."""
        super().load_state_dict(state_dict)
        if self._seed_is_random:
            seed = state_dict.get("seed", self.cfg.SEED)
            self.cfg = with_values(self.cfg, {"SEED": seed}, "the run that is continued")

    def build_hooks(self) -> list[HookBase]:
        """Return `HostMaskAnnealing` and Detectron2's hooks.

        It comes first, so that checkpoints and evaluations after a step have the probabilities of the next.
        """
        return [HostMaskAnnealing(self.cfg), *super().build_hooks()]

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        """Build the model; one of Detectron2 gets the targets of our loader as its types.

        Raises:
            ValueError: Detectron2 has no model of this name.
        """
        name = cfg.MODEL.META_ARCHITECTURE
        if name not in META_ARCH_REGISTRY:
            raise ValueError(f"MODEL.META_ARCHITECTURE {name} is not for --host detectron2; leave --host out")
        model = super().build_model(cfg)
        if name in HOST_MODELS:
            model.register_forward_pre_hook(_with_host_targets)
        return model

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Loader:
        """Build our loader of DATASETS.TRAIN, from the first batch on."""
        return build_train_loader(cfg, datasets=cls.datasets)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Loader:
        """Build our loader of a test dataset; with TEST.AUG it gives several views of each image."""
        return build_test_loader(cfg, dataset_name, datasets=cls.datasets)

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        """Build our optimizer, which clips the gradients before each step."""
        optimizer, clip = build_optimizer(cfg, model), build_clipper(cfg)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def clip_first(*_: Any) -> None:
            clip(parameters)

        optimizer.register_step_pre_hook(clip_first)
        # A fused optimizer would unscale float16 gradients in its step, after the clipping.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    build_lr_scheduler = staticmethod(build_scheduler)

    @classmethod
    def build_evaluator(
        cls, cfg: Any, dataset_name: str, output_folder: str | Path | None = None
    ) -> HostEvaluator:
        """Build our evaluators for the outputs that are on; by default they write to OUTPUT_DIR/inference."""
        folder = Path(output_folder or Path(cfg.OUTPUT_DIR) / "inference")
        several = len(cfg.DATASETS.TEST) > 1 and output_folder is None
        return build_evaluator(cfg, dataset_name, folder / dataset_name if several else folder)

    @classmethod
    def test(cls, cfg: Any, model: nn.Module, evaluators: Any = None) -> Any:
        """Run Detectron2's evaluation loop on DATASETS.TEST, with TEST.AUG if that is enabled.

        Raises:
            ValueError: TEST.TILE is on.
        """
        if cfg.TEST.TILE.SIZE:
            raise ValueError("TEST.TILE.SIZE works with --host standalone alone; type TEST.TILE.SIZE 0")
        if cfg.TEST.AUG.ENABLED and not isinstance(model, SemanticSegmentorWithTTA):
            model = SemanticSegmentorWithTTA(cfg, model)
        return super().test(cfg, model, evaluators)


def _with_host_targets(_: nn.Module, inputs: tuple[Sequence[Mapping[str, Any]]]) -> tuple[Any, ...]:
    return ([inputs_to_detectron2(image) for image in inputs[0]], *inputs[1:])


def check_output_dir(cfg: Any) -> None:
    """Raise ValueError if OUTPUT_DIR is a URL: our evaluators write local files, which nothing uploads."""
    if is_remote(cfg.OUTPUT_DIR):
        raise ValueError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR}: in Detectron2 it must be a local folder; "
            "without --host detectron2 a URL works"
        )


def _checked_dtype(cfg: Any) -> torch.dtype | None:
    """Return the dtype of mixed precision; None for float32. Raise ValueError for unsupported keys."""
    for key, supported, reason in (
        ("SOLVER.ACCUMULATION_STEPS", 1, "Detectron2's loop does not accumulate gradients"),
        ("SOLVER.STRATEGY", "ddp", "in Detectron2 each process holds all weights"),
        ("SOLVER.EMA_DECAY", 0.0, "Detectron2's loop does not average weights"),
        ("TEST.BEST_METRIC", "", "Detectron2's BestCheckpointer is not used"),
        ("LOGGERS", ["tensorboard"], "Detectron2 writes to TensorBoard alone"),
        ("SOLVER.EARLY_STOPPING", 0, "Detectron2's loop does not end early"),
    ):
        if (value := attrgetter(key)(cfg)) != supported:
            raise ValueError(f"{key} is {value!r}: {reason}; without --host detectron2 it works")
    device = torch.device(cfg.MODEL.DEVICE)
    dtype = autocast_dtype(cfg, device)
    if dtype is not None and device.type != "cuda":
        raise ValueError(
            f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE}: Detectron2's mixed precision needs a GPU, and "
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}"
        )
    return dtype
