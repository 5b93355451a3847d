"""Several processes, one model: all weights in each (SOLVER.STRATEGY "ddp"), or a part of them ("fsdp").

Under "fsdp" (torch's `fully_shard`) a process keeps a part of every weight, of its gradient and of the
optimizer's state; a block's weights are gathered while it computes. Outside of the training loop the model is
whole: evaluation and images work on a copy, as processes have different numbers of images and must not
wait for each other.
"""

import inspect
import warnings
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mask2former.modeling.backbone.resnet import ResidualBlock
from mask2former.modeling.backbone.swin import SwinBlock
from mask2former.modeling.pixel_decoder.msdeformattn import EncoderLayer
from mask2former.utils.comm import is_main_process, world_size

STRATEGIES = ("ddp", "fsdp")
_known = inspect.signature(DistributedDataParallel.__init__).parameters
# DDP's option to send buffers around before each pass; since torch 2.13 there is a warning of the old name
SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _known else "broadcast_buffers"
# What is gathered at once, and freed after use: what activation checkpointing recomputes. The rest, in the
# published models 16 to 22 million parameters, most of them the head's, stays gathered through a step, as
# does a backbone of others.
UNITS = (SwinBlock, ResidualBlock, EncoderLayer)


def parallelize(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """`model` with the main process's weights, averaging its gradients over processes if there are several.

    Raises:
        ValueError: SOLVER.STRATEGY is not known.
    """
    if cfg.SOLVER.STRATEGY not in STRATEGIES:
        raise ValueError(f"SOLVER.STRATEGY is '{cfg.SOLVER.STRATEGY}'; known are: {', '.join(STRATEGIES)}")
    if world_size() == 1:
        return model
    # DDP by itself leaves buffers alone if it is not to send them around, and FrozenBN consists of buffers
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    if cfg.SOLVER.STRATEGY == "fsdp":
        return _shard(model)
    return _replicate(model, cfg.SOLVER.ACCUMULATION_STEPS)


def _replicate(model: nn.Module, accumulation: int) -> nn.Module:
    """Every process with all weights.

    The graph is static: whatever the images hold, the criterion's terms hang on the same parameters; so
    parameters that a backbone of others does not use are found in the first step, once. Not so with
    accumulation: torch's static graph fails at it (an assertion, in the second piece of the first step).
    Gradients live in the buckets, which spares a copy of the model. Buckets have torch's 25 MB: the 168 MB
    of R50's gradients are exchanged in eight, while backward goes on, and only the last is waited for. (Two
    processes of one core each take as long with 5, 25 or 400 MB, 1.59, 1.55 and 1.59 s a step: there is
    nothing to hide the exchange behind. On GPUs it was not measured.)
    Buffers are not sent around before each pass: most are constants, and of batch norms' statistics, which
    training does not read, the main process's count.
    """
    # A 1x1 convolution's gradient may come in the strides of channels last, its weight and bucket in others.
    # Along sides of length 1 strides mean nothing: copied to the bucket, as all are, it is the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    device = next(model.parameters()).device
    devices = [torch.cuda.current_device()] if device.type == "cuda" else None
    options: dict[str, Any] = {SENDS_BUFFERS: False, "static_graph": accumulation == 1}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **options)


def _shard(model: nn.Module) -> nn.Module:
    """Every process with a part of each weight; `model` itself, changed.

    Weights stay float32 and autocast rounds them where they are used, as with one process: what the criterion
    and the pixel decoder compute in float32 needs them so. With accumulation the gradient of each piece is
    reduced at once: to keep it whole until the last would take what sharding spares.
    """
    # It is said of any output that is a view; losses are, and nobody changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for module in list(model.modules()):
        if isinstance(module, UNITS) and any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without DDP's wrapper."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds a part of the weights only."""
    return isinstance(model, FSDPModule)


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in parts; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(content: Any) -> Any:
    """A checkpoint's content with whole tensors, which are None but on the main process, on the CPU there.

    Every process must ask.
    """
    if isinstance(content, dict):
        return {key: gathered(value) for key, value in content.items()}
    if not isinstance(content, DTensor):
        return content
    whole = content.full_tensor()
    return whole.cpu() if is_main_process() else None


def in_parts_as(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a whole tensor, where `like` is a parameter in parts and of the same shape."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
