"""Each known dataset, drawn as downloaded and prepared by its script, is found sound and counted in full."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import run

from mask2former.tools.check_dataset import main

SCRIPTS = {"ade20k", "ade20k_full", "cityscapes", "coco", "coco_stuff"}  # the trees that one prepares
# Tree, name without its split, and what an image has: one file of a kind, or any number of masks.
DATASETS = [
    ("ade20k", "ade20k_sem_seg_{}", {"label PNG": "one"}),
    ("ade20k", "ade20k_instance_{}", {"RLE": "any"}),
    ("ade20k", "ade20k_panoptic_{}", {"panoptic PNG": "one", "label PNG": "one"}),
    ("ade20k_full", "ade20k_full_sem_seg_{}", {"label PNG": "one"}),
    ("cityscapes", "cityscapes_fine_sem_seg_{}", {"label PNG": "one"}),
    ("cityscapes", "cityscapes_fine_instance_seg_{}", {"RLE": "any"}),
    ("cityscapes", "cityscapes_fine_panoptic_{}", {"panoptic PNG": "one", "label PNG": "one"}),
    ("coco", "coco_2017_{}", {"polygons": "any", "uncompressed RLE": "any"}),
    ("coco", "coco_2017_{}_panoptic_with_sem_seg", {"panoptic PNG": "one", "label PNG": "one"}),
    ("coco_stuff", "coco_2017_{}_stuff_10k_sem_seg", {"label PNG": "one"}),
    ("lvis", "lvis_v1_{}", {"polygons": "any"}),
    ("mapillary", "mapillary_vistas_sem_seg_{}", {"label PNG": "one"}),
    ("mapillary", "mapillary_vistas_panoptic_{}", {"panoptic PNG": "one", "label PNG": "one"}),
]
NO_TRUTH = {"cityscapes": "test", "mapillary": "test"}  # splits whose ground truth is withheld


@pytest.fixture(scope="module")
def root_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: the name of a tree -> the folder that holds it, prepared."""
    made: dict[str, Path] = {}

    def root(tree: str) -> Path:
        if tree not in made:
            made[tree] = tmp_path_factory.mktemp(tree)
            importlib.import_module(f"synthetic_datasets.{tree}").draw(made[tree])
            if tree in SCRIPTS:
                run(f"prepare_{tree}", made[tree])
        return made[tree]

    return root


@pytest.mark.parametrize(("tree", "name", "forms"), DATASETS, ids=[name for _, name, _ in DATASETS])
def test_a_prepared_dataset_is_sound(tree, name, forms, root_of, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root_of(tree)))
    counts = importlib.import_module(f"synthetic_datasets.{tree}").COUNTS
    for split in counts.keys() - {NO_TRUTH.get(tree)}:
        code = main([name.format(split), "--workers", "1", "--json", "--output", str(tmp_path / split)])
        card = json.loads(capsys.readouterr().out)
        assert (code, card["broken"], card["warnings"]) == (0, {"count": 0, "first": []}, {})
        assert card["images"] == counts[split]
        shown, files = card["representation"], {k: counts[split] for k, n in forms.items() if n == "one"}
        assert shown and shown.keys() <= forms.keys() and files.items() <= shown.items()
        # The last image of a split shows no things, which is all that an instance dataset knows.
        assert card["images_without_objects"] == ("any" in forms.values())
        assert len(list((tmp_path / split).iterdir())) == counts[split] - card["images_without_objects"]


@pytest.mark.parametrize("task", ["sem_seg", "instance_seg"])
def test_images_whose_truth_is_withheld(task, root_of, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root_of("cityscapes")))
    assert main([f"cityscapes_fine_{task}_test", "--workers", "1", "--output", str(tmp_path)]) == 0
    assert "none: images alone" in capsys.readouterr().out
