"""Every published configuration builds a model whose tensors have the published names and shapes."""

import functools
import gzip
import json

import pytest
import torch
from golden import DATA

from mask2former.config import load_config
from mask2former.modeling import mask_former  # noqa: F401  (registers the models)
from mask2former.utils.registry import META_ARCH

VIDEO = "video_state_dicts.json.gz"
FILES = {"state_dicts.json.gz": 47, "maskformer_state_dicts.json.gz": 30, VIDEO: 12}


@functools.cache
def manifest(name):
    """Return the tensors' shapes by table, and each config's table and parameter count."""
    with gzip.open(DATA / name, "rt") as file:
        read = json.load(file)
    if name != VIDEO:
        return read
    configs = {config: {"table": config, "parameters": model["params"]} for config, model in read.items()}
    return {"configs": configs, "tables": {config: model["state"] for config, model in read.items()}}


MODELS = [(name, config) for name in FILES for config in sorted(manifest(name)["configs"])]


@pytest.mark.parametrize("name", FILES)
def test_the_manifests_are_complete(name):
    assert len(manifest(name)["configs"]) == FILES[name]


@pytest.mark.parametrize(("name", "config"), MODELS)
def test_names_shapes_and_parameter_count(name, config):
    expected = manifest(name)["configs"][config]
    with torch.device("meta"):
        cfg = load_config(config)
        model = META_ARCH.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    table = manifest(name)["tables"][expected["table"]]
    assert shapes.keys() == table.keys()
    assert {name: (shape, table[name]) for name, shape in shapes.items() if shape != table[name]} == {}
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["parameters"]
