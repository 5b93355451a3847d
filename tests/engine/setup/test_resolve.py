"""The resolved config is frozen, and no other module changes a config."""

import ast
import logging
from pathlib import Path

import pytest
from synthetic_datasets import youtube_vis
from tiny_runs import tiny_config, tiny_file

import mask2former
from mask2former.config import get_cfg
from mask2former.config.node import COMMAND_LINE, DEFAULT
from mask2former.config.yaml_files import flatten
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.train import train

PACKAGE = Path(mask2former.__file__).parent
RESOLVE = PACKAGE / "engine/setup/resolve.py"
HOST = PACKAGE / "detectron2_host/running.py"  # builds Detectron2's own config
CONFIG_NAMES = {"cfg", "config", "node", "solver", "ours"}  # variables that hold a config or a section
MUTATORS = {"merge_from_list", "merge_from_file", "merge_from_other_cfg", "set_value", "defrost"}


def root_of(node):
    """Return the name that a chain of attributes and items begins with, and whether it passes a section."""
    in_capitals = False
    while isinstance(node, ast.Attribute | ast.Subscript):
        in_capitals |= isinstance(node, ast.Attribute) and node.attr.isupper()
        node = node.value
    return (node.id if isinstance(node, ast.Name) else None), in_capitals


def changes_of_configs(path):
    """Return the lines of a file that assign to a config's keys or call a method that does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else targets
        targets = [part for target in targets for part in getattr(target, "elts", [target])]
        for target in targets:
            if isinstance(target, ast.Attribute | ast.Subscript):
                name, in_capitals = root_of(target)
                if name in CONFIG_NAMES or (in_capitals and name != "Image"):  # Pillow's has such names too
                    yield f"{path.name}:{target.lineno} {ast.unparse(target)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield f"{path.name}:{node.lineno} {ast.unparse(node.func)}"


def test_only_the_config_package_and_resolve_change_a_config():
    free = {RESOLVE, HOST, *(PACKAGE / "config").iterdir()}
    others = [path for path in PACKAGE.rglob("*.py") if path not in free]
    assert len(others) > 100
    assert not [change for path in others for change in changes_of_configs(path)]
    assert list(changes_of_configs(RESOLVE))


def test_the_scan_finds_every_kind_of_change(tmp_path):
    (tmp_path / "changes.py").write_text(
        "cfg.SEED = 1\ncfg.SOLVER.MAX_ITER, x = 2, 3\ntest.AUG.FLIP |= True\ncfg['SEED'] = 4\n"
        "self.cfg.merge_from_list([])\ncfg.defrost()\nx = cfg.SEED\nself.seed = cfg.SEED\n"
    )
    lines = [int(change.split(":")[1].split()[0]) for change in changes_of_configs(tmp_path / "changes.py")]
    assert sorted(lines) == [1, 2, 3, 4, 5, 6]


def test_a_resolved_config_is_a_frozen_copy_that_knows_its_sources(tiny_shapes, tmp_path):
    cfg = tiny_file("SEED", "7", OUTPUT_DIR=tmp_path)
    resolved = resolve_config(cfg, save_predictions=True, launched_on="cpu")
    assert resolved.is_frozen() and not cfg.is_frozen() and not cfg.TEST.SAVE_PREDICTIONS
    keys = ("TEST.SAVE_PREDICTIONS", "MODEL.MASK_FORMER.THING_IDS", "SEED", "VERSION", "SOLVER.MAX_ITER")
    assert [resolved.source(key) for key in keys] == [
        "--save-predictions",
        "dataset 'shapes_panoptic_train'",
        COMMAND_LINE,
        "tiny.yaml",
        "tiny.yaml",
    ]
    assert get_cfg().source("SEED") == DEFAULT
    with pytest.raises(AttributeError, match="immutable"):
        resolved.SOLVER.MAX_ITER = 3
    assert flatten(resolve_config(resolved)) == flatten(resolved)


def test_a_negative_seed_is_that_of_the_continued_run_or_random(tiny_shapes):
    seeds = [resolve_config(tiny_config(SEED=-1)).SEED for _ in range(2)]
    assert min(seeds) >= 0 and seeds[0] != seeds[1]
    assert resolve_config(tiny_config(SEED=-1), resumed_seed=12).SEED == 12
    assert resolve_config(tiny_config(SEED=5), resumed_seed=12).SEED == 5


def test_evaluation_alone_reads_no_training_data_and_no_schedule(tiny_shapes, caplog):
    with caplog.at_level(logging.INFO, "mask2former"):
        cfg = resolve_config(tiny_file(DATASETS__TRAIN=("nowhere",), SOLVER__EPOCHS=3), eval_only=True)
    assert (cfg.DATASETS.TRAIN, cfg.MODEL.MASK_FORMER.THING_IDS) == ((), [0, 1, 2])
    assert "dataset 'shapes_panoptic_val'" in caplog.text


def test_there_are_no_more_workers_than_cores_unless_typed(tiny_shapes, monkeypatch):
    monkeypatch.setattr("mask2former.engine.setup.resolve.usable_cores", lambda: 2)
    workers = {"DATALOADER__NUM_WORKERS": 4}
    assert resolve_config(tiny_file(**workers)).DATALOADER.NUM_WORKERS == 2
    assert resolve_config(tiny_file(DATALOADER__NUM_WORKERS=1)).DATALOADER.NUM_WORKERS == 1
    assert resolve_config(tiny_config(**workers)).DATALOADER.NUM_WORKERS == 4


def test_a_model_of_images_on_videos_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    youtube_vis.draw(tmp_path)
    cfg = tiny_file(DATASETS__TRAIN=("ytvis_2019_train",), DATASETS__TEST=(), OUTPUT_DIR=tmp_path)
    message = r"'ytvis_2019_train' holds videos, but MODEL\.META_ARCHITECTURE MaskFormer reads images; take"
    with pytest.raises(ValueError, match=message):
        resolve_config(cfg)


def test_training_needs_a_resolved_config():
    with pytest.raises(ValueError, match=r"takes a config from mask2former\.engine\.setup\.resolve"):
        train(tiny_config(), None)
