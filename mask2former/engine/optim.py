"""Optimizer, learning-rate schedule and gradient clipping from SOLVER.*: the paper's training recipe."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mask2former.modeling.vit.blocks import LayerScale
from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.utils.sharding import full_tensor, is_sharded

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, _NormBase, LayerScale)
UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed")
EMBEDDINGS = ("cls_token", "reg_token", "pos_embed")
# SOLVER.LAYER_DECAY_RULE -> powers of the decay: of a vision transformer's last block, and those by which its
# embeddings lie below its first block
LAYER_DECAY_RULES = {"beit": (1, 1), "eomt": (0, 0)}

# Keys of SOLVER that divide the parameters into groups
GROUPING = (
    "WEIGHT_DECAY",
    "WEIGHT_DECAY_NORM",
    "WEIGHT_DECAY_EMBED",
    "BACKBONE_MULTIPLIER",
    "LAYER_DECAY",
    "LAYER_DECAY_RULE",
    "FULL_RATE_BLOCKS",
    "VIT_WARMUP_ITERS",
)

Factor = Callable[[int], float]
Clipper = Callable[[Iterable[nn.Parameter]], Tensor]


def _parameter_groups(solver: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Group the trainable parameters of `model` by (rate, decay): fused kernels need few groups.

    The backbone's rate is multiplied, and those of a vision transformer's layers also by their decay; norms,
    embeddings and position tables have separate weight decays. Groups that warm up after the others are
    marked by "waits".
    """
    layers, waiting = layer_multipliers(solver, model), waiting_parameters(solver, model)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        decay = solver.WEIGHT_DECAY
        if name in UNDECAYED:
            decay = 0.0
        elif isinstance(owner, NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif isinstance(owner, nn.Embedding) or name in EMBEDDINGS:
            decay = solver.WEIGHT_DECAY_EMBED
        multiplier = solver.BACKBONE_MULTIPLIER if "backbone" in owner_path.split(".") else 1.0
        rate = solver.BASE_LR * multiplier * layers.get(path, 1.0)
        groups.setdefault((rate, decay, path in waiting), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "waits": waits}
        for (rate, decay, waits), parameters in groups.items()
    ]


def vision_transformers(model: nn.Module, key: str) -> dict[str, VisionTransformer]:
    """Return the plain vision transformers of a model by path.

    Raises:
        ValueError: there are none, with `key`, a key and its value that is for them alone.
    """
    found = {path: vit for path, vit in model.named_modules() if isinstance(vit, VisionTransformer)}
    if not found:
        raise ValueError(f"{key} is for plain vision transformers alone, and the model has none")
    return found


def waiting_parameters(solver: CfgNode, model: nn.Module) -> set[str]:
    """Return the names of the parameters that warm up in SOLVER.VIT_WARMUP_ITERS steps, after the others.

    Raises:
        ValueError: the key is set, and the model has no vision transformer.
    """
    if not solver.VIT_WARMUP_ITERS:
        return set()
    vits = vision_transformers(model, f"SOLVER.VIT_WARMUP_ITERS {solver.VIT_WARMUP_ITERS}")
    return {f"{path}.{name}" for path, vit in vits.items() for name, _ in vit.named_parameters()}


def layer_multipliers(solver: CfgNode, model: nn.Module) -> dict[str, float]:
    """Return by how much SOLVER.LAYER_DECAY multiplies the rate of each parameter of vision transformers.

    The decay is taken to a power that grows by one with each block from the last to the first. The last
    SOLVER.FULL_RATE_BLOCKS blocks have none.

    Raises:
        ValueError: a decay is set, and LAYER_DECAY_RULE is unknown or the model has no vision transformer.
    """
    decay, rule, full_rate = solver.LAYER_DECAY, solver.LAYER_DECAY_RULE, solver.FULL_RATE_BLOCKS
    if decay == 1:
        return {}
    if rule not in LAYER_DECAY_RULES:
        raise ValueError(f"SOLVER.LAYER_DECAY_RULE is '{rule}'; known are: {', '.join(LAYER_DECAY_RULES)}")
    return {
        f"{path}.{name}": decay ** _layer_power(name, len(vit.blocks), full_rate, *LAYER_DECAY_RULES[rule])
        for path, vit in vision_transformers(model, f"SOLVER.LAYER_DECAY {decay}").items()
        for name, _ in vit.named_parameters()
    }


def _layer_power(name: str, depth: int, full_rate: int, of_last: int, below_first: int) -> int:
    """Return the power of the decay for a parameter of a vision transformer; the last norm has none."""
    part, _, rest = name.partition(".")
    block = int(rest.partition(".")[0]) if part == "blocks" else -below_first
    if part == "norm" or (part == "blocks" and block >= depth - full_rate):
        return 0
    return depth - 1 - block + of_last


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """Return the optimizer SOLVER.OPTIMIZER of `model`, fused where the device supports it.

    Raises:
        ValueError: SOLVER.OPTIMIZER is unknown.
    """
    solver = cfg.SOLVER
    groups = _parameter_groups(solver, model)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if solver.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=fused)
    if solver.OPTIMIZER == "SGD":
        fused = fused and not is_sharded(model)  # torch's fused SGD does not support sharded weights
        return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, fused=fused)
    raise ValueError(f"SOLVER.OPTIMIZER is '{solver.OPTIMIZER}'; known are: ADAMW, SGD")


def has_same_groups(optimizer: Optimizer, state: dict[str, Any]) -> bool:
    """Return True if `state`, of an earlier optimizer, has groups of the same sizes."""
    both = (optimizer.param_groups, state["param_groups"])
    sizes, earlier_sizes = ([len(group["params"]) for group in groups] for groups in both)
    return sizes == earlier_sizes


def other_groups(solver: CfgNode, earlier: CfgNode) -> ValueError:
    """Return the error of a state that has other groups, with the keys that were others in `earlier`."""
    changed = " ".join(f"SOLVER.{key} {earlier[key]}" for key in GROUPING if earlier[key] != solver[key])
    remedy = f"type {changed}" if changed else "train the same parameters as it did"
    return ValueError(f"its optimizer has other groups of parameters; {remedy}")


def multi_step(solver: CfgNode) -> Factor:
    """Multiply by GAMMA at each of STEPS."""
    return lambda step: solver.GAMMA ** sum(step >= milestone for milestone in solver.STEPS)


def polynomial(solver: CfgNode, start: int = 0) -> Factor:
    """Decay as (1 - t)^POLY_LR_POWER, but not below POLY_LR_CONSTANT_ENDING.

    Here t goes from 0 at step `start` to 1 at MAX_ITER.
    """
    power, end = solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING
    steps = max(1, solver.MAX_ITER - start)
    return lambda step: max(max(0.0, 1 - max(0, step - start) / steps) ** power, end)


def cosine(solver: CfgNode) -> Factor:
    """Decay as half a cosine from 1 to 0 at MAX_ITER."""
    return lambda step: (1 + math.cos(math.pi * min(1.0, step / solver.MAX_ITER))) / 2


# SOLVER.LR_SCHEDULER_NAME -> decay by the config and the step at which the warm-up ends
SCHEDULES: dict[str, Callable[[CfgNode, int], Factor]] = {
    "WarmupMultiStepLR": lambda solver, _: multi_step(solver),
    "WarmupPolyLR": lambda solver, _: polynomial(solver),
    "WarmupThenPolyLR": polynomial,
    "WarmupCosineLR": lambda solver, _: cosine(solver),
}


def warmup(solver: CfgNode, start: int, steps: int) -> Factor:
    """Rise from WARMUP_FACTOR to 1 in `steps` steps: linearly, or in one jump at the end ("constant").

    Before step `start`, the factor is 0.

    Raises:
        ValueError: WARMUP_METHOD is unknown.
    """
    if solver.WARMUP_METHOD not in ("linear", "constant"):
        raise ValueError(f"SOLVER.WARMUP_METHOD is '{solver.WARMUP_METHOD}'; known are: linear, constant")
    first = solver.WARMUP_FACTOR
    slope = 1 - first if solver.WARMUP_METHOD == "linear" else 0.0

    def factor(step: int) -> float:
        if step < start:
            return 0.0
        return 1.0 if step >= start + steps else first + slope * (step - start) / steps

    return factor


def _schedule(solver: CfgNode, waits: bool) -> Factor:
    """Return decay times warm-up; a group that waits begins its own after that of the others."""
    start, steps = (0, solver.WARMUP_ITERS) if not waits else (solver.WARMUP_ITERS, solver.VIT_WARMUP_ITERS)
    decay = SCHEDULES[solver.LR_SCHEDULER_NAME](solver, start + steps)
    rise = warmup(solver, start, steps)
    return lambda step: decay(step) * rise(step)


def build_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LambdaLR:
    """Return the schedule SOLVER.LR_SCHEDULER_NAME times the warm-up, with one `step()` per training step.

    Raises:
        ValueError: SOLVER.LR_SCHEDULER_NAME is unknown.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in SCHEDULES:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is '{name}'; known are: {', '.join(sorted(SCHEDULES))}")
    # A step skipped for a non-finite gradient advances the schedule but not the optimizer; torch would warn.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
    factors = {waits: _schedule(cfg.SOLVER, waits) for waits in (False, True)}
    return LambdaLR(optimizer, [factors[group.get("waits", False)] for group in optimizer.param_groups])


def build_clipper(cfg: CfgNode) -> Clipper:
    """Return a function that clips gradients as SOLVER.CLIP_GRADIENTS says.

    It returns the norm of the whole gradient before clipping, which shows if a gradient is not finite.

    Raises:
        ValueError: CLIP_TYPE is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    kind = clip.CLIP_TYPE if clip.ENABLED else None
    if kind not in ("full_model", "value", "norm", None):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is '{kind}'; known are: full_model, value, norm")

    def clip_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
        if kind == "full_model":
            return _clip_norm(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)
        parameters = list(parameters)
        norm = _clip_norm(parameters, math.inf)
        if kind == "value":
            nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        elif kind == "norm":
            for parameter in parameters:
                _clip_norm(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
        return norm

    return clip_gradients


def _clip_norm(
    parameters: Iterable[nn.Parameter] | nn.Parameter, largest: float, norm_type: float = 2.0
) -> Tensor:
    """Clip, and return the norm over all shards of the gradients."""
    return full_tensor(nn.utils.clip_grad_norm_(parameters, largest, norm_type))
