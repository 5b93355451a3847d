"""Vision transformers in the authors' files and transformers', by name, by value, and in published sizes."""

import gzip
import json

import pytest
import torch
from small_vits import KINDS, load_theirs, saved_tensors, small_vit, theirs

from mask2former.modeling.vit.transformer import VisionTransformer
from mask2former.weights.rename import translate
from mask2former.weights.vit import PREFIX

LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": LARGE,
}
BEIT = {"positions": "relative", "registers": 0, "key_bias": False, "final_norm": False}
GIANT = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "ffn": "swiglu"}


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def manifest(shared, name):
    """Return the shapes in a published checkpoint."""
    return json.loads(gzip.decompress((shared / f"manifests/vit/{name}.json.gz").read_bytes()))["state_dict"]


def meta_vit(**arguments):
    with torch.device("meta"):
        return VisionTransformer(**arguments)


@pytest.mark.parametrize(
    ("checkpoint", "size", "grid"),
    [
        ("eomt_coco_panoptic_eomt_small_640_2x", "small", 40),
        ("eomt_coco_panoptic_eomt_base_640_2x", "base", 40),
        ("eomt_coco_panoptic_eomt_large_640", "large", 40),
        ("eomt_ade20k_semantic_eomt_large_512", "large", 32),
    ],
)
def test_names_and_shapes_are_those_of_eomts_checkpoints(shared, checkpoint, size, grid):
    prefix = "network.encoder.backbone."
    published = {
        name.removeprefix(prefix): tuple(shape)
        for name, shape in manifest(shared, checkpoint).items()
        if name.startswith(prefix)
    }
    assert shapes(meta_vit(**SIZES[size], position_grid=grid).state_dict()) == published


def test_beit_of_the_vit_adapter_has_our_shapes(shared):
    published = manifest(shared, "vit_adapter_beit_large_896_backbone")
    names = {name.removeprefix("backbone."): shape for name, shape in published.items()}
    parts = ("cls_token", "patch_embed.", "blocks.")
    of_vit = {name: torch.empty(names[name], device="meta") for name in names if name.startswith(parts)}
    scheme, tensors = translate(of_vit)
    assert scheme.title == "pretrained vision transformer"
    model = meta_vit(**LARGE, **BEIT, position_grid=56)
    assert shapes(tensors) == {PREFIX + name: shape for name, shape in shapes(model.state_dict()).items()}


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # transformers' models of the same sizes, without the mask token
        ({**SIZES["small"], "position_grid": 37}, 22_057_344),
        ({**GIANT, "position_grid": 37}, 1_136_483_840),
    ],
)
def test_parameter_counts(arguments, parameters):
    assert sum(p.numel() for p in meta_vit(**arguments, patch_size=14).parameters()) == parameters


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_transformers_hold_every_tensor(kind, tmp_path):
    scheme, tensors = translate(saved_tensors(theirs(kind), tmp_path))
    assert scheme.title == "pretrained vision transformer (transformers' names)"
    model = {PREFIX + name: tensor for name, tensor in small_vit(kind).state_dict().items()}
    assert shapes(tensors) == shapes(model)


def authors_dinov2(model):
    """Return our tensors as DINOv2's authors save them: the class token has a position of its own."""
    tensors = dict(model.state_dict())
    position = torch.full_like(tensors["cls_token"], 0.25)
    tensors["register_tokens"] = tensors.pop("reg_token")
    tensors["pos_embed"] = torch.cat((position, tensors["pos_embed"]), dim=1)
    tensors["cls_token"] = tensors["cls_token"] - position
    tensors["mask_token"] = torch.zeros(1, 32)
    return tensors


def authors_dinov3(model):
    """Return our tensors as DINOv3's authors save them: keys have a bias that a mask sets to zero."""
    tensors = dict(model.state_dict())
    tensors["storage_tokens"] = tensors.pop("reg_token")
    for i in range(len(model.blocks)):
        attention = f"blocks.{i}.attn."
        query, value = tensors.pop(f"{attention}q_bias"), tensors.pop(f"{attention}v_bias")
        tensors[f"{attention}qkv.bias"] = torch.cat((query, torch.ones_like(query), value))
        tensors[f"{attention}qkv.bias_mask"] = torch.tensor([1.0, 0, 1]).repeat_interleave(32)
        if f"blocks.{i}.mlp.w12.weight" in tensors:
            for kind in ("weight", "bias"):
                halves = tensors.pop(f"blocks.{i}.mlp.w12.{kind}").chunk(2)
                tensors |= {f"blocks.{i}.mlp.w{n}.{kind}": half for n, half in enumerate(halves, 1)}
    return tensors | {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def authors_beit(model):
    """Return our tensors as BEiT's authors save them, with a classifier."""
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        block, dot, leaf = name.partition(".ls")
        tensors[f"{block}.{names[f'ls{leaf}']}" if dot else name] = tensor
    tensors["blocks.0.attn.relative_position_index"] = torch.zeros(37, 37, dtype=torch.int64)
    return tensors | {"fc_norm.weight": torch.ones(32), "head.weight": torch.ones(1000, 32)}


@pytest.mark.parametrize(
    ("kind", "save"),
    [
        ("dinov2", authors_dinov2),
        ("dinov2-gated", authors_dinov2),
        ("dinov3", authors_dinov3),
        ("dinov3-gated", authors_dinov3),
        ("beit", authors_beit),
    ],
)
def test_files_of_the_authors_hold_every_tensor(kind, save, tmp_path):
    model = load_theirs(small_vit(kind), theirs(kind), tmp_path)
    scheme, tensors = translate(save(model))
    assert scheme.title == "pretrained vision transformer"
    expected = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, msg=name)


@pytest.mark.parametrize("broken", ["k.weight", "q.weight"])
def test_parts_that_do_not_fit_each_other_stay_as_they_are(broken):
    attention = "encoder.layer.0.attention.attention"
    tensors = {f"{attention}.{part}.weight": torch.ones(4, 4) for part in ("query", "key", "value")}
    tensors["embeddings.cls_token"] = torch.ones(1, 1, 4)
    name = {"k.weight": "key", "q.weight": "query"}[broken]
    tensors[f"{attention}.{name}.weight"] = torch.ones(5, 4)
    _, ours = translate(tensors)
    assert ours[f"{PREFIX}blocks.0.attn.{broken}"].shape == (5, 4)
