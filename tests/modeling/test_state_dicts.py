"""Every published configuration builds a model whose tensors have the published names and shapes."""

import functools
import gzip
import json

import pytest
import torch
from golden import DATA

from mask2former.config import load_config, resolve_config_file
from mask2former.modeling.mask_former import build_mask_former


@functools.cache
def manifest():
    with gzip.open(DATA / "state_dicts.json.gz", "rt") as file:
        return json.load(file)


def test_the_manifest_is_complete():
    assert len(manifest()["configs"]) == 47


@pytest.mark.parametrize("file", sorted(manifest()["configs"]))
def test_names_shapes_and_parameter_count(file):
    expected = manifest()["configs"][file]
    with torch.device("meta"):
        model = build_mask_former(load_config(resolve_config_file(file)))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    table = manifest()["tables"][expected["table"]]
    assert shapes.keys() == table.keys()
    assert {name: (shape, table[name]) for name, shape in shapes.items() if shape != table[name]} == {}
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]
