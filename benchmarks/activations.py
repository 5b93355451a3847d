"""Measure the activations that autograd keeps for one image, for docs/scaling.md.

    python benchmarks/activations.py

Counted are the bytes of all tensors that operators save for their gradients, each memory once, without
parameters and buffers: on the CPU, in bf16 autocast, at 1024x1024 with 20 targets. They include the bf16
copies of weights that autocast makes. What a GPU's kernels save differs, and its allocator rounds up.
"""

from typing import Any

import torch
from cpu_training import LARGE_SIDE, drawn_batch
from measure import MB, run_alone, table
from scaling_costs import CONFIGS
from torch import Tensor

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.structures import Instances


def kept_bytes(config: str, checkpointing: bool, side: int = LARGE_SIDE) -> int:
    """Return the bytes that a forward pass of one image keeps for the backward pass."""
    options = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.WEIGHTS",
        "",
        "MODEL.ACTIVATION_CHECKPOINTING",
        str(checkpointing),
    ]
    torch.manual_seed(0)
    model = build_model(load_config(config, options)).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            sizes[memory.data_ptr()] = memory.nbytes()
        return tensor

    image, classes, masks = drawn_batch(side)
    targets = Instances((side, side), gt_classes=classes, gt_masks=masks)
    sample: dict[str, Any] = {"image": image, "instances": targets, "seed": 0}
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16):
        losses = model([sample])  # noqa: F841  (keeps the saved tensors alive)
    return sum(sizes.values())


def report() -> str:
    """Return the table; see above."""
    head = ["an image of 1024x1024", "as it is", "MODEL.ACTIVATION_CHECKPOINTING True"]
    body = [
        [name, *(f"{kept_bytes(config, checkpointing) / MB:,.0f} MB" for checkpointing in (False, True))]
        for name, config in CONFIGS.items()
    ]
    return table([head, *body])


if __name__ == "__main__":
    run_alone(report)
