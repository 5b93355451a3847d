"""Maps of a small backbone, and the arguments of a small transformer encoder, for tests of pixel decoders."""

import torch

from mask2former.structures import ShapeSpec

SHAPES = {f"res{i}": ShapeSpec(4 * i, 2**i) for i in (2, 3, 4, 5)}
ENCODER = {
    **{"num_layers": 2, "num_heads": 4, "dim_feedforward": 16, "dropout": 0.0},
    **{"pre_norm": False, "activation_checkpointing": False},
}


def draw_maps(height=64, width=96, shapes=SHAPES):
    """Return two images' maps by name; the sides need not be multiples of the strides."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, channels, -(-height // stride), -(-width // stride), generator=generator)
        for name, (channels, stride) in shapes.items()
    }
