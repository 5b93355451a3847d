"""Small backbones with the same random weights at each call."""

import torch

from mask2former.modeling.backbone.resnet import ResNet
from mask2former.modeling.backbone.swin import SwinTransformer


def small_resnet(**changes):
    torch.manual_seed(0)
    keys = {"depth": 50, "stem_channels": 8, "res2_channels": 16, "width_per_group": 4, "norm": "BN"}
    return ResNet(**{**keys, **changes})


def small_swin(**changes):
    torch.manual_seed(0)
    keys = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "drop_path_rate": 0.0}
    return SwinTransformer(**{**keys, "out_features": ("res2", "res3"), **changes})
