"""Kept costs: they are those of the models, and recounting renews them."""

import json
import os
import re

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.tools.analyze import main
from mask2former.tools.flops import MeanCost
from mask2former.tools.paper import costs as kept_costs
from mask2former.tools.paper.costs import COSTS, count, read_costs, recount
from mask2former.tools.paper.tables import counted_configs, read_tables
from mask2former.weights import model_zoo

CONFIGS = list(dict.fromkeys([*model_zoo.table()["models"], *counted_configs(read_tables())]))
SOME = [  # each pixel decoder and transformer decoder once, each dataset, each kind of FLOPs
    "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "ade20k/semantic-segmentation/swin/maskformer2_swin_base_384_bs16_160k_res640.yaml",
    "ade20k/semantic-segmentation/swin/maskformer2_swin_large_fapn_IN21k_384_bs16_160k_res640.yaml",
    "maskformer/ade20k-150/maskformer_R50_bs16_160k.yaml",
    "maskformer/ade20k-150/per_pixel_baseline_R50_bs16_160k.yaml",
    "maskformer/coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k.yaml",
    "ablations/table4c/cross_attention_coco_instance.yaml",
    "ablations/table4c/mask_pooling_coco_instance.yaml",
    "ablations/table4d/concatenated_coco_instance.yaml",
    "ablations/table4e/semantic_fpn_coco_instance.yaml",
    "ablations/table4e/bifpn_coco_instance.yaml",
    "ablations/table10a/queries_1000_coco_instance.yaml",
]


def test_exactly_the_costs_of_both_pages_are_kept():
    assert list(json.loads(COSTS.read_text(encoding="utf-8"))) == sorted(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS)
def test_kept_parameters_are_those_of_the_model(config):
    with torch.device("meta"):
        model = build_model(load_config(config, ["MODEL.DEVICE", "meta"]))
    (kept,) = read_costs([config]).values()
    assert kept.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", CONFIGS if os.environ.get("M2F_RECOUNT") else SOME)
def test_kept_costs_are_what_is_counted(config):
    """Count the models again, all of them if M2F_RECOUNT is set."""
    assert {config: count(config)} == read_costs([config])


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """The path of a file of costs that has none."""
    monkeypatch.setattr(kept_costs, "COSTS", tmp_path / "costs.json")
    kept_costs.COSTS.write_text("{}")
    return kept_costs.COSTS


def test_recounting_renews_the_named_configs_and_drops_old_ones(monkeypatch, empty):
    old, new = MeanCost(1, 1, 1, 1), MeanCost(2, 2, 2, 2)
    empty.write_text(json.dumps({name: old._asdict() for name in ("a/b.yaml", "a/c.yaml", "gone.yaml")}))
    monkeypatch.setattr(kept_costs, "count", lambda config: new)
    recount(["a/b.yaml", "a/c.yaml", "b/b.yaml"], "b.yaml")
    assert json.loads(empty.read_text()) == {
        "a/b.yaml": new._asdict(),
        "a/c.yaml": old._asdict(),
        "b/b.yaml": new._asdict(),
    }


def test_what_was_counted_before_a_mistake_is_kept(monkeypatch, empty):
    def refuse(config):
        if config == "wrong.yaml":
            raise ValueError("wrong")
        return MeanCost(1, 1, 1, 1)

    monkeypatch.setattr(kept_costs, "count", refuse)
    with pytest.raises(ValueError, match="wrong"):
        recount(["right.yaml", "wrong.yaml"], "")
    assert list(json.loads(empty.read_text())) == ["right.yaml"]


@pytest.mark.parametrize("tables", ["--tables", "--published"])
def test_a_page_that_lacks_costs_says_what_to_type(tables, empty, capsys):
    assert main([tables]) == 1
    assert re.search(r"lacks \S+.yaml; type `.*--tables --recount \S+.yaml`", capsys.readouterr().err)
