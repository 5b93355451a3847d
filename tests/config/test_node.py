"""Keys, files and overrides: published configs have the published values, and errors name their cause."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode as FvcoreCfgNode
from published_configs import DEFAULTS as PUBLISHED_DEFAULTS
from published_configs import MASK2FORMER, MASKFORMER, PUBLISHED, VIDEO, VIDEO_DEFAULTS

from mask2former.config import (
    CfgNode,
    add_maskformer2_config,
    config_from_text,
    config_names,
    get_cfg,
    load_config,
    resolve_config_file,
    with_values,
)
from mask2former.config.defaults import DEFAULTS
from mask2former.config.detectron2_keys import ALIASES, IGNORED, REFUSED, ignored_reason
from mask2former.config.detectron2_keys import PUBLISHED as SILENT
from mask2former.config.yaml_files import flatten, read_layers
from mask2former.engine.setup.dataset_facts import with_dataset_facts

ROOT = Path(__file__).parents[2]
RES_MAPS = ["res2", "res3", "res4", "res5"]
OUR_DEFAULTS = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.DEVICE": "auto",
    "MODEL.RESNETS.OUT_FEATURES": RES_MAPS,
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": RES_MAPS,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
}
# MaskFormer's own project has no keys for its decoder and for where it matches and loses.
MASKFORMERS_DEFAULTS = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.MATCH_ON": "masks",
    "MODEL.MASK_FORMER.LOSS_ON": "masks",
    "MODEL.MASK_FORMER.MASK_LOSS": "focal",
}
READ_BY_MASKS_ALONE = ("TRANSFORMER_DECODER_NAME", "MATCH_ON", "LOSS_ON", "MASK_LOSS")


def as_json(value):
    return json.loads(json.dumps(value))


def stated(name):
    """Every key as the files state it, also those that `load_config` drops as ignored."""
    values = {**PUBLISHED_DEFAULTS, **DEFAULTS}
    for _, layer in read_layers(resolve_config_file(name)):
        values |= {key: CfgNode._decode_cfg_value(value) for key, value in layer.items()}
    return values


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def published(name):
    """Every key of a published config, with the values of keys that only this project has."""
    own = MASKFORMERS_DEFAULTS if name in MASKFORMER else VIDEO_DEFAULTS if name in VIDEO else {}
    values = {**PUBLISHED_DEFAULTS, **OUR_DEFAULTS, **own, **(PUBLISHED | VIDEO)[name]}
    per_pixel = values["MODEL.META_ARCHITECTURE"] == "SemanticSegmentor"
    return {
        key: value for key, value in values.items() if not (per_pixel and key.endswith(READ_BY_MASKS_ALONE))
    }


def test_all_published_names_exist():
    assert (len(MASK2FORMER), len(MASKFORMER), len(VIDEO)) == (57, 36, 14)
    assert PUBLISHED.keys() | VIDEO.keys() <= set(config_names())


@pytest.mark.parametrize("name", [*PUBLISHED, *VIDEO])
def test_published_config_resolves_to_the_published_values(name, caplog):
    expected = published(name)
    live = flatten(load_config(name))
    in_files = stated(name)
    assert not caplog.records
    for key, value in expected.items():
        assert as_json(in_files[key]) == value, key
        assert ignored_reason(key) or as_json(live[ALIASES.get(key, key)]) == value, key


@pytest.mark.parametrize(
    ("name", "things", "some"),
    [
        ("ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml", 100, {12, 149}),  # person, flag
        ("cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml", 8, {11, 18}),  # person, bicycle
        # bird, wheeled
        ("mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml", 37, {0, 62}),
    ],
)
def test_panoptic_configs_need_no_files_for_their_things(name, things, some, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = with_dataset_facts(load_config(name))
    found = set(cfg.MODEL.MASK_FORMER.THING_IDS)
    assert len(found) == things and some <= found
    assert max(found) < cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_config_files_state_only_values_that_differ_from_their_bases():
    for name in config_names():
        *below, (_, own) = read_layers(resolve_config_file(name))
        inherited = {key: value for _, layer in below for key, value in layer.items()}
        assert not [key for key, value in own.items() if inherited.get(key, "unset") == value], name


def test_every_key_of_detectron2_is_read_or_ignored_or_an_alias_and_never_two_of_these():
    assert not [key for key in DEFAULTS if ignored_reason(key) or key in ALIASES]
    rest = PUBLISHED_DEFAULTS.keys() - DEFAULTS.keys() - ALIASES.keys()
    assert all(ignored_reason(key) for key in rest)
    assert all(any(ignored_reason(key) == IGNORED[name] for key in rest) for name in IGNORED)
    assert set(ALIASES.values()) <= set(DEFAULTS) and set(REFUSED) <= set(SILENT)
    for key, values in SILENT.items():
        assert as_json(values[0]) == PUBLISHED_DEFAULTS[key], key


def names_read(path):
    """Attributes and dotted keys; in files that pass a whole section on, parameters and strings too."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    parameters = {node.arg.upper() for node in nodes if isinstance(node, ast.arg)}
    strings = {str(node.value).upper() for node in nodes if isinstance(node, ast.Constant)}
    tasks = {f"{string}_ON" for string in strings} if "_ON" in strings else set()
    keys = strings & set(DEFAULTS)
    return attributes | keys | (parameters | strings if "items" in attributes else set()) | tasks


def test_every_key_is_read_by_some_module():
    files = [path for path in (ROOT / "mask2former").rglob("*.py") if path.parent.name != "config"]
    reads = [names_read(path) for path in files]
    keys = {key: set(key.split(".")[-2:]) for key in flatten(get_cfg())}
    dead = [key for key, names in keys.items() if not any(names <= read or key in read for read in reads)]
    assert not dead, f"nothing reads {dead}"


def test_base_list_later_file_wins_and_paths_are_relative_to_the_file(tmp_path):
    write(tmp_path, "a.yaml", "SOLVER: {MAX_ITER: 1, BASE_LR: 0.5}\n")
    write(tmp_path, "deep/b.yaml", "_BASE_: c.yaml\nSOLVER: {MAX_ITER: 2}\n")
    write(tmp_path, "deep/c.yaml", "SOLVER: {MAX_ITER: 3, GAMMA: 0.25}\n")
    leaf = write(tmp_path, "leaf.yaml", f"_BASE_: [{tmp_path}/a.yaml, deep/b.yaml]\nSEED: 7\n")
    cfg = load_config(leaf)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SEED) == (2, 0.5, 0.25, 7)


def test_a_missing_or_circular_base_and_a_file_that_is_not_text_are_named(tmp_path):
    a = write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"b\.yaml.*_BASE_ of .*a\.yaml"):
        load_config(a)
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match=r"b\.yaml: _BASE_ leads back to .*a\.yaml"):
        load_config(a)
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match=r"model\.bin: is not text"):
        load_config(tmp_path / "model.bin")


def test_overrides_take_the_type_of_the_key():
    cfg = get_cfg()
    opts = ["SOLVER.BASE_LR", "1e-4", "SOLVER.STEPS", "[5, 6]", "MODEL.WEIGHTS", "a/b.pth", "SEED", "3"]
    cfg.merge_from_list([*opts, "MODEL.SWIN.QK_SCALE", "0.5", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.MODEL.WEIGHTS, cfg.SEED) == (1e-4, (5, 6), "a/b.pth", 3)
    assert cfg.MODEL.SWIN.QK_SCALE == 0.5
    assert type(cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE) is float
    with pytest.raises(ValueError, match=r"SEED is alone"):
        cfg.merge_from_list(["SEED"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LRR", "1", r"unknown key SOLVER\.BASE_LRR .*did you mean SOLVER\.BASE_LR\?"),
        ("MODEL.MASK_FORMER.NUM_QUERIES", "9", "did you mean MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        ("INPUT.AUGMENTATION", "[]", "unknown key INPUT.AUGMENTATION .*did you mean INPUT.AUGMENTATIONS"),
        ("MODEL.WEIGHTS.PATH", "x", "did you mean MODEL.WEIGHTS"),
        ("MODEL.RESNETS", "50", "MODEL.RESNETS is a section of keys"),
        ("_BASE_", "x.yaml", "_BASE_ belongs at the top of a file"),
        ("SOLVER.MAX_ITER", "many", r"SOLVER\.MAX_ITER is 'many', a str; it takes a int such as 40000"),
        ("SOLVER.MAX_ITER", "1.5", "it takes a int"),
        ("SOLVER.MAX_ITER", "True", "it takes a int"),
        ("SOLVER.MAX_ITER", "None", "it takes a int"),
        ("MODEL.PIXEL_MEAN", "['a', 'b', 'c']", r"it takes a list such as \[103\.53"),
        ("SOLVER.STEPS", "('soon',)", r"it takes a tuple such as \(30000,\)"),
        ("DATASETS.TEST", "coco_2017_val", "it takes a tuple"),
        ("VERSION", "1", "VERSION 1 is not supported"),
        ("SOLVER.ACCUMULATION_STEPS", "often", "it takes a int such as 1, or 'auto'"),
        ("MODEL.SWIN.USE_CHECKPOINT", "2", "it takes a bool"),
        ("MODEL.RESNETS.RES4_DILATION", "2", "RES4_DILATION = .* is not supported"),
        ("MODEL.RESNETS.RES5_DILATION", "2", "RES5_DILATION = .* is not supported"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]", "STAGE = .* is not supported"),
        ("SOLVER.REFERENCE_BATCH", "16", r"unknown key .*REFERENCE_BATCH .*use SOLVER\.ACCUMULATION_STEPS"),
    ],
)
def test_wrong_overrides_name_key_and_value(key, value, message):
    with pytest.raises(ValueError, match=message) as error:
        get_cfg().merge_from_list([key, value])
    assert str(error.value).startswith("command line: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER:\n  MAX_ITR: 5\n", "did you mean SOLVER.MAX_ITER"),
        ("SOLVER:\n  MAX_ITER: soon\n", "SOLVER.MAX_ITER is 'soon'"),
        ("VERSION: 3\n", "VERSION 3"),
        ("- a\n- b\n", "not keys with values"),
        ("MODEL: [unclosed\n", "line 2, column 1: expected ',' or"),
        ("MODEL: &all\n  RESNETS: *all\n", "nested too deeply, or contains itself"),
        ("SEED: " + "[" * 9999, "nested too deeply, or contains itself"),
        ("_BASE_:\n", "_BASE_ is None; it takes a file name or a list of them"),
        ("_BASE_: [1]\n", r"_BASE_ is \[1\]"),
        ("MODEL:\n  WEIGHTS: !!python/object/apply:os.system ['true']\n", "os.system"),
    ],
)
def test_errors_in_files_name_the_file(tmp_path, text, message):
    base = write(tmp_path, "base.yaml", text)
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match=message) as error:
        load_config(leaf)
    assert str(error.value).startswith(f"{base}: ")


def test_ignored_keys_warn_except_for_published_values(caplog):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.RES5_MULTI_GRID", "(1, 1, 1)", "MODEL.RESNETS.STEM_TYPE", "basic"])
    assert not caplog.records
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.ROI_MASK_HEAD.NORM", "BN"])
    classes, norm = (record.message for record in caplog.records)
    assert "command line: MODEL.ROI_HEADS.NUM_CLASSES = 3 has no effect" in classes
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in classes
    assert "MODEL.ROI_MASK_HEAD.NORM = 'BN' has no effect: Mask2Former has no box" in norm
    assert "ROI_HEADS" not in cfg.MODEL


def test_a_model_of_detectron2_reads_all_keys_of_detectron2(caplog):
    cfg = load_config("comparators/mask_rcnn/mask_rcnn_R50_bs64_400ep.yaml")
    cfg.merge_from_list(["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RESNETS.RES5_DILATION", "2"])
    assert not caplog.records and "ROI_HEADS" not in cfg.MODEL
    with pytest.raises(ValueError, match=r"unknown key MODEL\.ROY_HEADS\.NAME"):
        cfg.merge_from_list(["MODEL.ROY_HEADS.NAME", "a"])


def test_swins_published_switch_switches_activation_checkpointing_on_and_never_off(tmp_path):
    base = write(tmp_path, "base.yaml", "MODEL: {SWIN: {USE_CHECKPOINT: True}}\n")
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\nMODEL: {SWIN: {USE_CHECKPOINT: False}}\n")
    cfg = load_config(leaf)
    assert cfg.MODEL.ACTIVATION_CHECKPOINTING and "USE_CHECKPOINT" not in cfg.MODEL.SWIN
    assert cfg.source("MODEL.ACTIVATION_CHECKPOINTING") == str(base)


def test_a_config_knows_what_set_each_key(tmp_path):
    file = write(tmp_path, "a.yaml", "SOLVER: {MAX_ITER: 7, GAMMA: 0.5}\n")
    cfg = load_config(file, ["SOLVER.GAMMA", "0.25"])
    changed = with_values(pickle.loads(pickle.dumps(cfg.clone())), {"SEED": 5}, "a test")
    keys = ("SOLVER.MAX_ITER", "SOLVER.GAMMA", "SEED", "VERSION")
    assert [changed.source(key) for key in keys] == [str(file), "command line", "a test", "default"]
    assert [key for key in keys if changed.is_typed(key)] == ["SOLVER.GAMMA"]
    assert (changed.SEED, cfg.SEED, cfg.source("SEED")) == (5, -1, "default")


def test_values_of_a_copy_leave_it_as_frozen_as_the_original_and_must_fit():
    cfg = get_cfg()
    cfg.freeze()
    assert with_values(cfg, {"SEED": 1}, "a test").is_frozen()
    assert not with_values(get_cfg(), {}, "").is_frozen()
    with pytest.raises(ValueError, match="a test: SEED is 'x', a str"):
        with_values(cfg, {"SEED": "x"}, "a test")
    with pytest.raises(ValueError, match="a test: unknown key SEEED"):
        with_values(cfg, {"SEEED": 1}, "a test")


def test_dump_and_read_back():
    cfg = load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", ["SEED", "5"])
    assert flatten(config_from_text(cfg.dump(), "checkpoint")) == flatten(cfg)
    with pytest.raises(ValueError, match=r"^checkpoint: unknown key NEW"):
        config_from_text("NEW: 1\n", "checkpoint")


def test_a_stored_config_of_an_earlier_release_is_read_without_its_removed_keys():
    text = "SOLVER: {REFERENCE_BATCH: 16, ACCUMULATION_STEPS: 8}\nMODEL: {SWIN: {USE_CHECKPOINT: False}}\n"
    cfg = config_from_text(text, "checkpoint", ["SEED", "4"])
    assert (cfg.SOLVER.ACCUMULATION_STEPS, cfg.SEED) == (8, 4)


def test_keys_added_by_the_user_are_keys(tmp_path):
    cfg = get_cfg()
    cfg.MINE = CfgNode({"RATE": 0.5})
    cfg.merge_from_file(write(tmp_path, "mine.yaml", "MINE: {RATE: 1}\n"), allow_unsafe=True)
    assert cfg.MINE.RATE == 1.0


def test_nodes_can_be_merged_and_frozen_and_do_not_share_defaults():
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN.append(0.0)
    assert len(get_cfg().MODEL.PIXEL_MEAN) == 3
    cfg.merge_from_other_cfg(CfgNode({"SOLVER": {"GAMMA": 0.3}}))
    assert cfg.SOLVER.GAMMA == 0.3
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.merge_from_list(["SEED", "1"])


def test_adding_keys_to_another_projects_node_keeps_its_values_and_allows_published_files():
    foreign = FvcoreCfgNode({"MODEL": {"DEVICE": "cuda"}, "SEED": 9})
    add_maskformer2_config(foreign)
    published = {"MASK_FORMER": {"TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder"}}
    foreign.merge_from_other_cfg(FvcoreCfgNode({"MODEL": published}))
    assert (foreign.MODEL.DEVICE, foreign.SEED, foreign.MODEL.MASK_FORMER.NHEADS) == ("cuda", 9, 8)


def test_config_files_resolve_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"
    assert resolve_config_file(name) == resolve_config_file(f"configs/{name}")
    own = write(tmp_path, "own.yaml", "SEED: 1\n")
    assert resolve_config_file("own.yaml").resolve() == own
    with pytest.raises(FileNotFoundError, match="did you mean coco/instance-segmentation/maskformer2_R50"):
        resolve_config_file("coco/instance-segmentation/maskformer2_R50.yaml")


def test_a_misspelled_attribute_is_an_error_with_the_nearest_name():
    cfg = get_cfg()
    for changed in (cfg, cfg.clone(), with_values(cfg, {"SEED": 1}, "a test")):
        with pytest.raises(
            AttributeError, match=r"^there is no key WEIGHT; did you mean WEIGHTS\? \(to add a"
        ):
            changed.MODEL.WEIGHT = "x.pth"
        with pytest.raises(AttributeError, match=r"no key OUTPUT_DIRECTORY; did you mean OUTPUT_DIR\?"):
            changed.OUTPUT_DIRECTORY = "x"
        with pytest.raises(AttributeError, match=r"^there is no key WEIGHT; did you mean WEIGHTS\?$"):
            changed.MODEL.WEIGHT  # noqa: B018
        assert not hasattr(changed.MODEL, "WEIGHT") and getattr(changed, "NONE", 3) == 3
        changed.MODEL.WEIGHTS = "x.pth"
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.MODEL.WEIGHT = "x.pth"


def add_project_config(cfg):
    """Add keys as projects of Detectron2 do."""
    cfg.MINE = CfgNode()
    cfg.MINE.RATE = 0.5
    cfg.MODEL.MINE = CfgNode({"DEPTH": 3})
    cfg.MODEL.MASK_FORMER = CfgNode(cfg.MODEL.MASK_FORMER)
    cfg.MODEL.MASK_FORMER.TEMPERATURE = 1.0
    cfg.INPUT["BLUR"] = True
    cfg.SOLVER.set_new_allowed(True)
    cfg.SOLVER.RESTARTS = 2


def test_projects_add_keys_of_their_own_and_files_set_them(tmp_path):
    cfg = get_cfg()
    add_project_config(cfg)
    cfg.merge_from_file(write(tmp_path, "a.yaml", "MINE: {RATE: 0.25}\nSOLVER: {RESTARTS: 5}\n"))
    assert (cfg.MINE.RATE, cfg.MODEL.MINE.DEPTH, cfg.SOLVER.RESTARTS, cfg.INPUT.BLUR) == (0.25, 3, 5, True)
    assert cfg.MODEL.MASK_FORMER.TEMPERATURE == 1.0 and cfg.MODEL.MASK_FORMER.NHEADS == 8


def test_the_error_of_a_name_without_suffix_has_the_calls_for_published_models():
    call = r'type --model coco-panoptic-r50 or Predictor\.from_zoo\("coco-panoptic-r50"\)'
    with pytest.raises(FileNotFoundError, match=f"no config file 'coco-panoptic-r50'.*{call}"):
        load_config("coco-panoptic-r50")
    with pytest.raises(FileNotFoundError) as error:
        load_config("maskformer2_R5.yaml")
    assert "published" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", r"folder: is a folder, not a config file; type a \.yaml file"),
        ("pipe.yaml", r"pipe\.yaml: is a pipe, socket or device, not a config file"),
        ("m.pth", r"m\.pth: is a checkpoint, not a config file; type MODEL\.WEIGHTS .*m\.pth after a config"),
        ("a.JPG", r"a\.JPG: is an image, not a config file; type --input .*a\.JPG to predict"),
        ("large.yaml", r"large\.yaml: is larger than 2000000 bytes, so not a config file"),
    ],
)
def test_what_is_no_config_file_is_an_error_that_says_what_to_type(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    write(tmp_path, "m.pth", "")
    write(tmp_path, "a.JPG", "")
    write(tmp_path, "large.yaml", "# " + "x" * 2_000_000)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(tmp_path / name)
