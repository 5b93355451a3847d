"""Inference in bfloat16: which weights are stored in it, and which sums are not left to it.

Products take bfloat16 and sum in float32; residual sums, norms, softmax, places to sample, and the products
that make mask logits stay in float32. It pays where a processor multiplies bfloat16 matrices: AMX or
AVX512_BF16 on x86 (`lscpu`), and GPUs.
"""

import torch
from torch import nn

from mask2former.modeling.layers.attention import MSDeformAttn, MultiHeadAttention
from mask2former.modeling.mask_former import MaskFormer

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def set_precision(model: MaskFormer, name: str) -> None:
    """Let a trained model predict in "fp32" or "bf16", in place; from bf16 there is no way back.

    Weights of products are stored in bfloat16, so that no prediction has to round them again.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision is '{name}'; known are {', '.join(PRECISIONS)}")
    model.precision = PRECISIONS[name]
    if name == "fp32":
        return
    exact = {module.sampling_offsets for module in model.modules() if isinstance(module, MSDeformAttn)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | MultiHeadAttention) and module not in exact:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(PRECISIONS[name])
