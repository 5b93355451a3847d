"""Each built-in dataset, synthetic and prepared, passes check-dataset and is counted in full."""

import importlib
import json

import pytest
from dataset_cases import roots

from mask2former.tools.check_dataset import main

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
NO_GROUND_TRUTH = {"cityscapes": "test", "mapillary": "test"}  # splits without public ground truth


__all__ = ["roots"]


@pytest.mark.parametrize(("tree", "name", "forms"), DATASETS, ids=[name for _, name, _ in DATASETS])
def test_a_prepared_dataset_passes(tree, name, forms, roots, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(roots(tree)))
    counts = importlib.import_module(f"synthetic_datasets.{tree}").COUNTS
    for split in counts.keys() - {NO_GROUND_TRUTH.get(tree)}:
        code = main([name.format(split), "--workers", "1", "--json", "--output", str(tmp_path / split)])
        report = json.loads(capsys.readouterr().out)
        assert (code, report["broken"], report["warnings"]) == (0, {"count": 0, "first": []}, {})
        assert report["images"] == counts[split]
        shown, files = report["representation"], {k: counts[split] for k, n in forms.items() if n == "one"}
        assert shown and shown.keys() <= forms.keys() and files.items() <= shown.items()
        # The last image of a split has no things, so an instance dataset has no objects in it.
        assert report["images_without_objects"] == ("any" in forms.values())
        assert len(list((tmp_path / split).iterdir())) == counts[split] - report["images_without_objects"]


@pytest.mark.parametrize("task", ["sem_seg", "instance_seg"])
def test_images_without_public_ground_truth_pass(task, roots, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(roots("cityscapes")))
    assert main([f"cityscapes_fine_{task}_test", "--workers", "1", "--output", str(tmp_path)]) == 0
    assert "none: images alone" in capsys.readouterr().out
