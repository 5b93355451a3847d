"""Small vision transformers with drawn weights: transformers' and ours, which read them from its file."""

import contextlib
import io

import pytest
import torch
from safetensors.torch import load_file

from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.weights.rename import translate
from mask2former.weights.vit import PREFIX

DEPTH, WIDTH, HEADS, HIDDEN, PATCH, SIDE = 3, 32, 2, 64, 4, 24  # 6 x 6 patches
SIZES = ((24, 24), (20, 36))
SHARED = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": SIDE,
    "layer_norm_eps": 1e-6,
}
OURS = {
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": 2.0,
    "patch_size": PATCH,
    "position_grid": SIDE // PATCH,
}
DINOV3 = {"intermediate_size": HIDDEN, "num_register_tokens": 4}
# Names of transformers' config and model, its arguments, and ours
KINDS = {
    "dinov2": ("Dinov2WithRegisters", {"mlp_ratio": 2}, {}),
    "dinov2-gated": ("Dinov2WithRegisters", {"mlp_ratio": 2, "use_swiglu_ffn": True}, {"ffn": "swiglu"}),
    "dinov3": ("DINOv3ViT", DINOV3, {"positions": "rotary", "key_bias": False}),
    "dinov3-gated": (
        "DINOv3ViT",
        {**DINOV3, "use_gated_mlp": True, "intermediate_size": 48, "hidden_act": "silu"},
        {"positions": "rotary", "key_bias": False, "ffn": "swiglu", "mlp_ratio": 2.25},
    ),
    "beit": (
        "Beit",
        {"intermediate_size": HIDDEN, "use_relative_position_bias": True},
        {"positions": "relative", "registers": 0, "key_bias": False, "final_norm": False},
    ),
}


def theirs(kind, seed=0):
    """Return transformers' model with drawn weights, or skip the test."""
    transformers = pytest.importorskip("transformers")
    name, arguments, _ = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SHARED, **arguments)
    model = getattr(transformers, f"{name}Model")(config).eval()
    return draw(model, seed)


def draw(model, seed=0):
    """Draw all parameters anew, so that none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1 if parameter.dim() == 1 else 2 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 * scale)
    return model


def small_vit(kind="dinov2", **changes):
    """Return our model of the same kind, with its own initial weights."""
    torch.manual_seed(0)
    return VisionTransformer(**{**OURS, **KINDS[kind][2], **changes}).eval()


def saved_tensors(model, folder):
    """Return the tensors of the file that transformers saves."""
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def load_theirs(model, oracle, folder):
    """Load the file that transformers saves into our model, through the tables of names."""
    _, tensors = translate(saved_tensors(oracle, folder))
    model.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    return model
