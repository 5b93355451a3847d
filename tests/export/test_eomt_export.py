"""An exported EoMT: images of any size, also those whose patches are the grid of its positions."""

import pytest
import torch
from small_eomts import small_eomt
from small_vits import draw

from mask2former.export.graph import Graph, torch_program


@pytest.fixture(scope="module")
def graph_and_program():
    model = draw(small_eomt(side=64))
    model.sem_seg_head.set_probabilities([0.0, 0.0])
    graph = Graph(model)
    return graph, torch_program(graph, 16).module()


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (80, 128), (50, 70)])
def test_the_program_equals_the_model_at_any_size(size, graph_and_program):
    graph, program = graph_and_program
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, wanted in zip(program(images), graph(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
