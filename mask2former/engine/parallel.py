"""Data-parallel training: replicated weights (SOLVER.STRATEGY "ddp") or sharded weights ("fsdp").

Under "fsdp" (torch's `fully_shard`) a process keeps a shard of every weight, of its gradient and of the
optimizer's state; a block's weights are gathered while it computes. Evaluation and visualization use an
unsharded copy of the model: processes have different numbers of images and must not wait for each other.
"""

import inspect
import warnings
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from mask2former.modeling.backbone.resnet import ResidualBlock
from mask2former.modeling.backbone.swin import SwinBlock
from mask2former.modeling.layers.transformer import TransformerEncoderLayer
from mask2former.modeling.pixel_decoder.msdeformattn import EncoderLayer
from mask2former.modeling.vit.adapter_parts import Extractor, Injector
from mask2former.modeling.vit.blocks import Block
from mask2former.utils.comm import world_size

STRATEGIES = ("ddp", "fsdp")
_known = inspect.signature(DistributedDataParallel.__init__).parameters
# DDP's option to broadcast buffers before each forward pass; torch 2.13 warns of the old name
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _known else "broadcast_buffers"
# Modules whose weights are gathered together and freed after use, the same that activation checkpointing
# recomputes. The rest, in the published models 16 to 22 million parameters, most of them the head's, stays
# gathered through a step; so does a backbone of other modules.
UNITS = (SwinBlock, ResidualBlock, Block, Injector, Extractor, EncoderLayer, TransformerEncoderLayer)


def parallelize(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return `model` with rank 0's weights and, if there are several processes, averaged gradients.

    Raises:
        ValueError: SOLVER.STRATEGY is unknown.
    """
    if cfg.SOLVER.STRATEGY not in STRATEGIES:
        raise ValueError(f"SOLVER.STRATEGY is '{cfg.SOLVER.STRATEGY}'; known are: {', '.join(STRATEGIES)}")
    if world_size() == 1:
        return model
    # Without SYNC_BUFFERS, DDP does not broadcast buffers even once, and FrozenBN consists of buffers
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), 0)
    if cfg.SOLVER.STRATEGY == "fsdp":
        return _shard(model)
    return _replicate(model, cfg.SOLVER.ACCUMULATION_STEPS)


def _replicate(model: nn.Module, accumulation: int) -> nn.Module:
    """Wrap `model` in DistributedDataParallel.

    The graph is static: the criterion's terms depend on the same parameters whatever the images contain, so
    parameters that a custom backbone does not use are found once, in the first step. With accumulation,
    torch's static graph fails (an assertion in the second micro-batch of the first step). Gradients are views
    of the buckets, which saves a copy of the model. Buckets have torch's default of 25 MB: R50's 168 MB of
    gradients are reduced in eight buckets during backward. (Two processes with one core each take 1.59, 1.55
    and 1.59 s a step with 5, 25 and 400 MB: no compute is left to overlap with. Not measured on GPUs.)
    Buffers are not synchronized: most are constants, and training does not read batch-norm statistics, of
    which rank 0's count.
    """
    # The gradient of a 1x1 convolution may be channels-last while weight and bucket are contiguous; strides
    # along dimensions of size 1 make no difference to the copy into the bucket.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    device = next(model.parameters()).device
    devices = [torch.cuda.current_device()] if device.type == "cuda" else None
    options: dict[str, Any] = {SYNC_BUFFERS: False, "static_graph": accumulation == 1}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **options)


def _shard(model: nn.Module) -> nn.Module:
    """Shard `model` in place.

    Weights stay float32 and autocast casts them where they are used, as in one process: the criterion and the
    pixel decoder compute in float32. Under accumulation each micro-batch's gradient is reduced at once: an
    unsharded gradient kept until the last one would cost the memory that sharding saves.
    """
    # torch warns of every output that is a view; losses are views, and nothing changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    for module in list(model.modules()):
        if isinstance(module, UNITS) and any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
