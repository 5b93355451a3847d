"""Exported vision transformers of all kinds: images of any size, to which the file resizes positions."""

import onnxruntime
import pytest
import torch
from small_vits import draw, small_vit
from torch import nn

from mask2former.export.graph import onnx_program, torch_program
from mask2former.export.runtimes import INPUT
from mask2former.modeling.vit.adapter import ViTAdapter

PATCH = 16
SHAPES = [(2, 3, 96, 96), (1, 3, 64, 160)]  # the first has the grid of the positions


class ViT(nn.Module):
    """Tokens of a vision transformer, and their map; an exported file has two outputs."""

    def __init__(self, kind):
        super().__init__()
        self.vit = draw(small_vit(kind, depth=1, patch_size=PATCH))

    def forward(self, images):
        tokens, layout = self.vit(images)
        return tokens, self.vit.to_map(tokens, layout)


class Adapter(nn.Module):
    """The finer two and the coarser two maps of an adapter on a vision transformer."""

    def __init__(self, kind):
        super().__init__()
        vit = small_vit(kind, depth=4, patch_size=PATCH, final_norm=False)
        self.adapter = draw(ViTAdapter(vit, num_heads=2, norm="BN").eval())

    def forward(self, images):
        maps = [x.flatten(1) for x in self.adapter(images).values()]
        return torch.cat(maps[:2], dim=1), torch.cat(maps[2:], dim=1)


def assert_equal_at_other_sizes(exported, module, tolerance):
    for shape in SHAPES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(shape[3]))
        for found, wanted in zip(exported(images), module(images), strict=True):
            scale = float(wanted.abs().max())
            assert scale > 0.1
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("kind", ["dinov3", "beit"])
@torch.no_grad()
def test_a_program_of_torch_resizes_positions(kind):
    module = ViT(kind).eval()
    assert_equal_at_other_sizes(torch_program(module, PATCH).module(), module, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "kind"), [(ViT, "dinov3"), (ViT, "beit"), (Adapter, "dinov2")])
@torch.no_grad()
def test_an_onnx_file_computes_the_same(graph, kind):
    module = graph(kind).eval()
    program = onnx_program(module, PATCH)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())

    def exported(images):
        return map(torch.from_numpy, session.run(None, {INPUT: images.numpy()}))

    assert_equal_at_other_sizes(exported, module, 1e-5)
