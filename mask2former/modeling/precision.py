"""Numeric precision by name, and prediction in bfloat16; `mask2former/modeling/int8.py` has int8.

Matrix products take bfloat16 and sum in float32; residual sums, norms, softmax, sampling locations, and the
products that give mask logits stay in float32. This is faster only where the hardware multiplies bfloat16
matrices: AMX or AVX512_BF16 on x86 (`lscpu`), and GPUs.
"""

import torch
from torch import nn

from mask2former.modeling.layers.attention import MSDeformAttn, MultiHeadAttention
from mask2former.modeling.mask_former import MaskFormer
from mask2former.options import FLOAT_PRECISIONS, PREDICTION_PRECISIONS

PRECISIONS = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def set_precision(model: MaskFormer, name: str) -> None:
    """Let a trained model predict in "fp32" or "bf16", in place; bf16 cannot be undone.

    Weights of matrix products are stored in bfloat16, so that no prediction has to round them again.

    Raises:
        ValueError: an unknown name.
    """
    if name not in FLOAT_PRECISIONS:
        raise ValueError(f"precision is '{name}'; known are {', '.join(PREDICTION_PRECISIONS)}")
    model.precision = PRECISIONS[name]
    if name == "fp32":
        return
    exact = {module.sampling_offsets for module in model.modules() if isinstance(module, MSDeformAttn)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | MultiHeadAttention) and module not in exact:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(PRECISIONS[name])
