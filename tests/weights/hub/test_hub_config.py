"""config.json and our keys: the values of real files, lossless round trips, and models that do not fit."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest

from mask2former.config import get_cfg, load_config, with_values
from mask2former.config.yaml_files import flatten
from mask2former.weights.hub.config import (
    EXTRA,
    class_names,
    extra,
    extra_of,
    hub_config,
    labels,
    model_type,
    model_values,
)
from mask2former.weights.hub.processor import hub_processor, input_values

GOLDEN = Path(__file__).parents[2] / "golden_files"
PARTS = {  # what transformers has a model for, among the published parts
    "BACKBONE.NAME": ("build_resnet_backbone", "D2SwinTransformer"),
    "SEM_SEG_HEAD.NAME": ("MaskFormerHead",),
    "SEM_SEG_HEAD.PIXEL_DECODER_NAME": ("MSDeformAttnPixelDecoder", "BasePixelDecoder"),
}


def published(file, model):
    """Return model and tensors of each published config that transformers has a model for."""
    manifest = json.loads(gzip.decompress((GOLDEN / file).read_bytes()))
    found = {}
    for config, row in manifest["configs"].items():
        keys = flatten(load_config(config).MODEL)
        if all(keys[part] in known for part, known in PARTS.items()):
            found[config] = model, list(manifest["tables"][row["table"]])
    return found


PUBLISHED = published("state_dicts.json.gz", "mask2former") | published(
    "maskformer_state_dicts.json.gz", "maskformer"
)
R50 = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = ["road", "car"]
SMALL_SWIN = {  # fields that a file of the hub has; it leaves out those with transformers' defaults
    "architectures": ["Mask2FormerForUniversalSegmentation"],
    "model_type": "mask2former",
    "backbone_config": {
        "model_type": "swin",
        "depths": [2, 2, 18, 2],
        "drop_path_rate": 0.3,
        "out_features": STAGES,
        "path_norm": True,
    },
    "id2label": {"0": "road", "1": "car"},
    "label2id": {"road": 0, "car": 1},
    "num_queries": 200,
    "init_std": 0.03,
    "activation_function": "relu",
}


def ours(config, processor=None):
    """Return the config that two files give."""
    values = model_values(config) | input_values(processor or {})
    return with_values(get_cfg(), values | (extra_of(config, labels(config)) or ({},))[0], "config.json")


def test_a_swin_of_the_hub():
    model = ours(SMALL_SWIN).MODEL
    assert model.BACKBONE.NAME == "D2SwinTransformer"
    assert (model.SWIN.EMBED_DIM, model.SWIN.DEPTHS, model.SWIN.DROP_PATH_RATE) == (96, [2, 2, 18, 2], 0.3)
    assert (model.SEM_SEG_HEAD.NUM_CLASSES, model.MASK_FORMER.NUM_OBJECT_QUERIES) == (2, 200)
    published = load_config("coco/panoptic-segmentation/swin/maskformer2_swin_small_bs16_50ep.yaml").MODEL
    for key in ("CONVS_DIM", "MASK_DIM", "TRANSFORMER_ENC_LAYERS", "TRANSFORMER_ENC_DIM_FEEDFORWARD"):
        assert model.SEM_SEG_HEAD[key] == published.SEM_SEG_HEAD[key]
    for key in ("HIDDEN_DIM", "DEC_LAYERS", "NHEADS", "DIM_FEEDFORWARD", "DROPOUT", "CLASS_WEIGHT"):
        assert model.MASK_FORMER[key] == published.MASK_FORMER[key]
    assert (model.PIXEL_MEAN, model.PIXEL_STD) == (published.PIXEL_MEAN, published.PIXEL_STD)


@pytest.mark.parametrize(
    ("depths", "kind", "depth"),
    [
        ([2, 2, 2, 2], "basic", 18),
        ([3, 4, 6, 3], "basic", 34),
        ([3, 4, 6, 3], "bottleneck", 50),
        ([3, 4, 23, 3], "bottleneck", 101),
        ([3, 8, 36, 3], "bottleneck", 152),
    ],
)
def test_a_resnet_is_known_by_its_blocks(depths, kind, depth):
    backbone = {"model_type": "resnet", "depths": depths, "layer_type": kind, "out_features": STAGES}
    assert depth == ours({**SMALL_SWIN, "backbone_config": backbone}).MODEL.RESNETS.DEPTH


@pytest.mark.parametrize("config", sorted(PUBLISHED))
def test_every_published_config_comes_back_with_every_value(config):
    model, names = PUBLISHED[config]
    cfg = load_config(config, ["MODEL.MASK_FORMER.THING_IDS", [1], "SEED", 5])
    metadata = {
        "stuff_classes": [f"c{k}" for k in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)],
        "thing_ids": [1],
    }
    theirs = hub_config(cfg, metadata, names, {})
    assert theirs["model_type"] == model_type(cfg) == model
    processor = hub_processor(cfg, "Mask2FormerImageProcessor", {})
    theirs[EXTRA] = extra(cfg, metadata, theirs, processor)
    theirs, processor = json.loads(json.dumps([theirs, processor]))
    assert flatten(ours(theirs, processor)) == flatten(cfg)
    assert extra_of(theirs, labels(theirs))[1] == metadata
    fields = {key.rpartition(".")[2] for key in theirs[EXTRA]["config"] if key.startswith("MODEL.SWIN")}
    assert not fields, "transformers has a field for each of them"


def test_a_config_of_the_hub_comes_back_unchanged():
    cfg = ours(SMALL_SWIN)
    again = hub_config(cfg, {"stuff_classes": NAMES}, [], SMALL_SWIN)
    assert again == SMALL_SWIN
    cfg = with_values(cfg, {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 7, "MODEL.SWIN.WINDOW_SIZE": 5}, "test")
    backbone = {**SMALL_SWIN["backbone_config"], "window_size": 5}
    changed = {**SMALL_SWIN, "num_queries": 7, "backbone_config": backbone}
    assert hub_config(cfg, {"stuff_classes": NAMES}, [], SMALL_SWIN) == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "detr"}, "model_type is 'detr'; it must be 'mask2former' or 'maskformer'"),
        ({"model_type": None}, "model_type is None"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu'"),
        (
            {"backbone_config": {"model_type": "convnext"}},
            "backbone_config.model_type is 'convnext'; it must be 'swin' or 'resnet'",
        ),
        ({"backbone_config": None}, "backbone_config.model_type is None"),
        (
            {"backbone_config": {"model_type": "swin", "out_features": ["stage4"]}},
            "backbone_config.out_features is",
        ),
        ({"backbone_config": {"model_type": "resnet", "depths": "many"}}, "backbone_config.depths is 'many'"),
        (
            {"backbone_config": {"model_type": "resnet", "hidden_sizes": [64, 64, 64, 64]}},
            "hidden_sizes is .*; each must be twice the one before",
        ),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is .*; it must have a name for each number"),
        ({"id2label": ["a", "b"]}, "id2label is"),
    ],
)
def test_a_config_that_is_not_of_this_model_is_an_error_that_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        model_values({**SMALL_SWIN, **changes})


FIELDS = [name for name, _ in flatten(SMALL_SWIN).items() if not name.startswith(("id2", "label2"))]


@pytest.mark.parametrize("value", [None, True, -1, 10**400, 1e400, "x", [], {}, [[]], [None] * 4], ids=repr)
@pytest.mark.parametrize(
    "name", [*FIELDS, "id2label", "backbone_config", "backbone_config.hidden_sizes", EXTRA]
)
def test_a_wrong_value_of_any_field_is_a_value_error_or_read(name, value):
    for kind in ("swin", "resnet"):
        config = json.loads(json.dumps(SMALL_SWIN))
        config["backbone_config"]["model_type"] = kind
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
        with contextlib.suppress(ValueError):
            ours(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BiFPN"),
        ("MODEL.SEM_SEG_HEAD.NORM", ""),
        ("MODEL.MASK_FORMER.DECODER.ATTENTION", "cross"),
        ("MODEL.MASK_FORMER.DECODER.LEARNED_QUERIES", False),
        ("MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"),
        ("MODEL.RESNETS.NUM_GROUPS", 32),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 4),
        ("INPUT.FORMAT", "BGR"),
    ],
)
def test_a_model_that_transformers_lacks_is_an_error_that_names_the_key(key, value):
    with pytest.raises(ValueError, match=f"{key} is '?{value}"):
        hub_config(load_config(R50, [key, value]), {}, ["backbone.res2.0.conv3.weight"], {})


def test_our_key_does_not_count_once_the_classes_are_others():
    config = {**SMALL_SWIN, EXTRA: {"config": {"SEED": 1}, "metadata": {"stuff_classes": NAMES}}}
    assert extra_of(config, NAMES) == ({"SEED": 1}, {"stuff_classes": NAMES})
    assert extra_of(config, ["road", "bus"]) is None
    assert extra_of(SMALL_SWIN, NAMES) is None
    for broken in ([], {"config": {}}, {"config": {}, "metadata": "x"}):
        with pytest.raises(ValueError, match=r"mask2former is .*; it must have `config` and `metadata`"):
            extra_of({EXTRA: broken}, NAMES)


def test_class_names_are_those_of_the_list_of_the_right_length():
    assert class_names({"thing_classes": ["a"], "stuff_classes": ["a", "b"]}, 2) == ["a", "b"]
    assert class_names({"thing_classes": ["a"]}, 1) == ["a"]
    assert class_names({}, 2) == ["class 0", "class 1"]
