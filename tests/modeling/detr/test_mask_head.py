"""The mask head against plain versions of its parts."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.modeling.detr import mask_head
from mask2former.modeling.detr.mask_head import MaskHeadSmallConv, MaskSource, MHAttentionMap

WIDTH, HEADS = 128, 8
SHAPES = [(3, 4), (5, 8), (10, 15), (20, 30)]  # coarsest first; sides need not be doubled


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def source(num_images=2, blocked=None):
    torch.manual_seed(0)
    head = MaskHeadSmallConv(width=WIDTH, num_heads=HEADS, map_channels=[24, 16, 8])
    for name, parameter in head.named_parameters():
        if name.startswith("gn") or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    maps = [
        draw(num_images, channels, *shape) for channels, shape in zip((24, 16, 8), SHAPES[1:], strict=True)
    ]
    coarsest, cells = draw(num_images, WIDTH, *SHAPES[0]), draw(num_images, 12, WIDTH)
    return MaskSource(MHAttentionMap(WIDTH, HEADS), head, coarsest, cells, maps, blocked)


def slow_attention(attention, query, cells, blocked):
    """Return one query's weights (heads, S): one softmax over the products of all heads and cells."""
    q, k = attention.q_linear(query), attention.k_linear(cells)
    size = WIDTH // HEADS
    logits = torch.stack(
        [k[:, h * size : (h + 1) * size] @ q[h * size : (h + 1) * size] / size**0.5 for h in range(HEADS)]
    )
    exponents = logits.exp()
    exponents[:, blocked] = 0
    return exponents / exponents.sum()


def slow_mask(head, coarsest, attention, maps):
    """Return one query's logits (H/4, W/4), with the map and the attention in one tensor."""
    part = dict(head.named_children())
    x = torch.cat([coarsest, attention])[None]
    for number in (1, 2):
        x = part[f"gn{number}"](part[f"lay{number}"](x)).relu()
    for number, finer in enumerate(maps, start=1):
        x = F.interpolate(x, size=finer.shape[1:], mode="nearest") + part[f"adapter{number}"](finer[None])
        x = part[f"gn{number + 2}"](part[f"lay{number + 2}"](x)).relu()
    return part["out_lay"](x)[0, 0]


def test_masks_equal_the_slow_version_query_by_query():
    blocked = torch.zeros(2, 1, 12, dtype=torch.bool)
    blocked[1, 0, 8:] = True
    whole = source(blocked=blocked)
    queries = draw(5, WIDTH)
    for image in range(2):
        found = whole.masks(image, queries)
        assert found.shape == (5, *SHAPES[-1])
        for query, logits in zip(queries, found, strict=True):
            weights = slow_attention(whole.attention, query, whole.cells[image], blocked[image, 0])
            maps = [finer[image] for finer in whole.maps]
            expected = slow_mask(whole.head, whole.coarsest[image], weights.view(HEADS, *SHAPES[0]), maps)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_without_gradients_queries_are_computed_in_parts(monkeypatch):
    whole, queries = source(), draw(5, WIDTH)
    together = whole.masks(0, queries)
    sizes = []
    whole.head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[1])))
    monkeypatch.setattr(mask_head, "VALUES_AT_ONCE", 2 * 20 * 30 * whole.head.widths[-2])
    with torch.no_grad():
        torch.testing.assert_close(whole.masks(0, queries), together, atol=1e-5, rtol=1e-4)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("width", "heads"), [(64, 8), (256, 4)])
def test_widths_that_groups_do_not_divide_are_errors_that_name_both_keys(width, heads):
    with pytest.raises(
        ValueError, match=f"HIDDEN_DIM is {width} and NHEADS {heads}; .* multiples of 128 and 8"
    ):
        MaskHeadSmallConv(width=width, num_heads=heads, map_channels=[8, 8, 8])
