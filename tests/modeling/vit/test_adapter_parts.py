"""The parts of ViT-Adapter, each against slow formulas."""

import pytest
import slow_adapter
import torch
from small_vits import draw

from mask2former.modeling.layers.attention import MSDeformAttn, map_sequence
from mask2former.modeling.vit.adapter_parts import Extractor, Geometry, Injector, SpatialPrior

WIDTH, HEADS = 16, 2
GRID = (4, 6)
PRIOR = ((8, 12), (4, 6), (2, 3))
SIZES = {"width": WIDTH, "num_heads": HEADS, "value_ratio": 0.5}


def geometry():
    return Geometry(*(map_sequence(shapes, torch.device("cpu")) for shapes in ((GRID,), PRIOR)))


def sequences():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 24, WIDTH, generator=generator), torch.randn(2, 126, WIDTH, generator=generator)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@torch.no_grad()
def test_deformable_attention_between_two_sequences(ratio):
    module = draw(MSDeformAttn(width=WIDTH, num_heads=HEADS, num_levels=3, num_points=4, value_ratio=ratio))
    assert module.value_proj.weight.shape == (WIDTH * ratio, WIDTH)
    patches, cells = sequences()
    actual = module.attend(patches, module.project(cells), PRIOR, geometry().patches.centers)
    expected = slow_adapter.deformable_attention(module.state_dict(), patches, [GRID], cells, PRIOR, HEADS)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_heads_must_divide_the_width_of_values():
    with pytest.raises(ValueError, match="a width of 8 cannot be shared by 16 attention heads"):
        MSDeformAttn(width=WIDTH, num_heads=16, num_levels=1, num_points=4, value_ratio=0.5)


@torch.no_grad()
def test_an_injector_adds_cells_to_patches():
    module, (patches, cells) = draw(Injector(**SIZES)), sequences()
    expected = slow_adapter.inject(module.state_dict(), patches, cells, GRID, PRIOR, HEADS)
    torch.testing.assert_close(module(patches, cells, geometry()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_injector_changes_nothing():
    patches, cells = sequences()
    assert torch.equal(Injector(**SIZES)(patches, cells, geometry()), patches)


@torch.no_grad()
def test_an_extractor_adds_patches_to_cells():
    module, (patches, cells) = draw(Extractor(**SIZES, drop_path=0.5)).eval(), sequences()
    expected = slow_adapter.extract(module.state_dict(), cells, patches, GRID, PRIOR, HEADS)
    torch.testing.assert_close(module(cells, patches, geometry()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_drop_path_drops_the_feed_forward_network_alone():
    module, (patches, cells) = draw(Extractor(**SIZES, drop_path=0.999)).train(), sequences()
    patches, cells = patches[:1], cells[:1]
    torch.manual_seed(0)
    dropped = module(cells, patches, geometry())
    module.ffn.fc2.weight.zero_(), module.ffn.fc2.bias.zero_()
    torch.testing.assert_close(dropped, module(cells, patches, geometry()))
    assert not torch.equal(dropped, cells)


@torch.no_grad()
def test_the_spatial_prior_has_four_maps():
    module = draw(SpatialPrior(in_channels=3, width=8, norm="BN")).eval().double()
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    maps = module(images)
    expected = slow_adapter.spatial_prior(module.state_dict(), images)
    assert [x.shape[2:] for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for actual, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, other)
        assert other.std() > 0.1
