"""BiFPN: a node and the flow between nodes, worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from pixel_decoder_cases import ENCODER, SHAPES, draw_maps

from mask2former.modeling.pixel_decoder import BiFPNPixelDecoder
from mask2former.modeling.pixel_decoder.bifpn import BiFPNLayer, FusionNode


def test_a_node_is_a_weighted_mean_then_a_separable_convolution():
    torch.manual_seed(0)
    node = FusionNode(3, 32, "GN")
    assert node.weights.tolist() == [1, 1, 1]
    with torch.no_grad():
        node.weights.copy_(torch.tensor([1.0, -5.0, 3.0]))  # a negative weight is none
    x, y, z = torch.randn(3, 2, 32, 5, 7).double()
    fused = (x + 3 * z) / 4.0001
    hidden = fused * fused.sigmoid()
    kernel = node.pointwise.weight[:, :, 0, 0, None, None] * node.depthwise.weight[:, 0]  # (out, in, 3, 3)
    expected = F.group_norm(F.conv2d(hidden, kernel.double(), padding=1), 32)
    torch.testing.assert_close(node.double()(x, y, z), expected, atol=1e-7, rtol=1e-7)


class Noting(torch.nn.Module):
    """A node that adds its inputs and notes how many there are."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def forward(self, *inputs):
        self.counts.append(len(inputs))
        return sum(inputs)


def test_a_layer_goes_down_and_back_up():
    layer, node = BiFPNLayer(4, 32, ""), Noting()
    layer.top_down = torch.nn.ModuleList([node] * 3)
    layer.bottom_up = torch.nn.ModuleList([node] * 2)
    layer.coarsest = node
    maps = [torch.full((1, 1, n, n), value) for n, value in ((1, 1000.0), (2, 100.0), (3, 10.0), (6, 1.0))]
    skipped = [torch.full((1, 1, n, n), value) for n, value in ((2, 7000.0), (3, 70000.0))]
    result = layer(maps, skipped)
    assert node.counts == [2, 2, 2, 3, 3, 2]
    assert [x.shape[2] for x in result] == [1, 2, 3, 6]
    finest = 1111.0  # all maps together
    second = 70000 + 1110 + finest
    third = 7000 + 1100 + second
    assert [x.unique().item() for x in result] == [1000 + third, third, second, finest]


def test_the_way_back_takes_the_largest_value_around_every_second_cell():
    layer, node = BiFPNLayer(2, 32, ""), Noting()
    layer.top_down, layer.coarsest = torch.nn.ModuleList([node]), node
    fine = torch.tensor([[1.0, 2, 9, 3, 4]] + [[0.0] * 5] * 2)[None, None]
    coarse, _ = layer([torch.zeros(1, 1, 2, 3), fine], [])
    assert coarse[0, 0].tolist() == [[2, 9, 4], [0, 0, 0]]


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    sizes = {"conv_dim": 32, "mask_dim": 12, "norm": "GN", "num_fusions": 3}
    return BiFPNPixelDecoder(input_shape=SHAPES, **sizes, **ENCODER)


def test_layers_follow_each_other_and_the_first_has_projections_of_its_own(decoder):
    features = draw_maps()
    mask_features, memory, encoded = decoder(features)
    names = ("res4", "res3", "res2")
    maps = [
        encoded,
        *(lateral(features[name]) for lateral, name in zip(decoder.laterals, names, strict=True)),
    ]
    skipped = [decoder.skipped_laterals[0](features["res4"]), decoder.skipped_laterals[1](features["res3"])]
    maps = decoder.layers[0](maps, skipped)
    for layer in decoder.layers[1:]:
        maps = layer(maps, maps[1:3])
    torch.testing.assert_close(memory, maps[:3])
    torch.testing.assert_close(mask_features, decoder.mask_features(maps[3]))
