"""K-Net's update stage (section 3.3): kernels change by the features inside their masks, and by each other.

Modules are named as in the public checkpoints, but for the parts of attention and feed-forward network.

Shapes: `B` images, `Q` kernels, `K` classes, `C` channels, `h, w` the sides of the features.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.modeling.layers.attention import MultiHeadAttention
from mask2former.modeling.layers.feed_forward import feed_forward
from mask2former.modeling.predictions import Prediction

FIRST_SCORE = 0.01  # of every class, before training


class KernelUpdator(nn.Module):
    """Adaptive kernel update (equations 4 to 6): gates weight the group feature against the kernel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dynamic_layer = nn.Linear(width, 2 * width)
        self.input_layer = nn.Linear(width, 2 * width)
        self.input_gate = nn.Linear(width, width)
        self.update_gate = nn.Linear(width, width)
        self.norm_in = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.input_norm_in = nn.LayerNorm(width)
        self.input_norm_out = nn.LayerNorm(width)
        self.fc_layer = nn.Linear(width, width)
        self.fc_norm = nn.LayerNorm(width)

    def forward(self, groups: Tensor, kernels: Tensor) -> Tensor:
        """Update kernels by the features of their groups, (B, Q, C) both -> (B, Q, C)."""
        group_gate, group = self.dynamic_layer(groups).chunk(2, -1)
        kernel_gate, kernel = self.input_layer(kernels).chunk(2, -1)
        gate = kernel_gate * group_gate
        update = self.norm_in(self.update_gate(gate)).sigmoid() * self.norm_out(group)
        kept = self.input_norm_in(self.input_gate(gate)).sigmoid() * self.input_norm_out(kernel)
        return F.relu(self.fc_norm(self.fc_layer(update + kept)))


class KernelUpdateStage(nn.Module):
    """One stage: kernel update, self-attention of kernels, feed-forward network, then classes and masks.

    The public code projects the features by `feat_transform`, a convolution of each stage's own, then sums
    them over a mask and multiplies them by kernels. Both are linear, so the projection is applied to the sums
    and the kernels instead: the same numbers, and features that are common to all stages.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, *, width: int, num_classes: int, num_heads: int, dim_feedforward: int) -> None:
        super().__init__()
        self.feat_transform = nn.Conv2d(width, width, 1)
        self.kernel_update_conv = KernelUpdator(width)
        self.attention = MultiHeadAttention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.cls_fcs = _hidden_layer(width)
        self.fc_cls = nn.Linear(width, num_classes)
        self.mask_fcs = _hidden_layer(width)
        self.fc_mask = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights by Xavier's rule, and class biases so that scores start at FIRST_SCORE."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        assert self.feat_transform.bias is not None
        nn.init.zeros_(self.feat_transform.bias)
        nn.init.constant_(self.fc_cls.bias, logit(FIRST_SCORE))

    def forward(self, kernels: Tensor, masks: Tensor, features: Tensor) -> tuple[Tensor, Prediction]:
        """Return updated kernels (B, Q, C) and their prediction.

        Args:
            kernels: (B, Q, C).
            masks: logits (B, Q, h, w) of the stage before; a group is the cells where they are positive.
            features: (B, C+1, h, w), of which the last channel is 1.
        """
        assert self.feat_transform.bias is not None
        projection = torch.cat([self.feat_transform.weight.flatten(1), self.feat_transform.bias[:, None]], 1)
        inside = (masks > 0).to(features.dtype).flatten(2)
        groups = inside @ features.flatten(2).transpose(1, 2) @ projection.T
        x = self.kernel_update_conv(groups, kernels)
        x = self.attention_norm(x + self.attention(x, x, x))
        x = self.ffn_norm(x + feed_forward(x, self.linear1, self.linear2))
        return x, Prediction(self.fc_cls(self.cls_fcs(x)), self.fc_mask(self.mask_fcs(x)) @ projection, x)


def logit(probability: float) -> float:
    """Return the logit of a probability."""
    return math.log(probability / (1 - probability))


def _hidden_layer(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.ReLU(inplace=True))
