"""The YAML files as a tree: how many an experiment reads, in which order, and whether each is read at all."""

import pytest

from mask2former.config import config_names, resolve_config_file
from mask2former.config.yaml_files import read_layers

MOST_FILES = 4
LAYERS = ["models", "backbones", "datasets"]  # the order in which an experiment names its bases
NAMES = config_names()
EXPERIMENTS = [name for name in NAMES if "/Base-" not in name]
ROOT = resolve_config_file(NAMES[0]).resolve().parents[NAMES[0].count("/")]


def files_read(name):
    """The files behind an experiment, relative to configs/, its own last."""
    layers = read_layers(resolve_config_file(name))
    return [path.relative_to(ROOT).as_posix() for path, _ in layers]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_reads_at_most_four_files_each_once(name):
    files = files_read(name)
    assert len(files) == len(set(files)) <= MOST_FILES, files


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_reads_one_file_of_a_layer_in_the_order_of_the_layers(name):
    *bases, own = files_read(name)
    folders = [base.split("/")[:2] for base in bases]
    assert own == name
    assert folders == [["_base_", layer] for layer in LAYERS if ["_base_", layer] in folders]


def test_every_base_is_read_by_some_experiment():
    bases = {path.relative_to(ROOT).as_posix() for path in (ROOT / "_base_").rglob("*.yaml")}
    assert bases and bases <= {file for name in EXPERIMENTS for file in files_read(name)}
