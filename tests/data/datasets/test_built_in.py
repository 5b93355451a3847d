"""The built-in datasets: their facts without files, and the errors if files are missing."""

import json
import re
from pathlib import Path

import pytest
from oracle_predictions import ADE20K_THINGS, CITYSCAPES_LABELS, COCO_STUFF_UNUSED, MAPILLARY_THINGS
from published_configs import DEFAULTS, PUBLISHED, is_experiment

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.datasets.files import METADATA, PREPARED
from mask2former.engine.setup.dataset_facts import with_dataset_facts

ROOT = Path(__file__).parents[3]
THINGS = {
    "ade20k_panoptic_train": ADE20K_THINGS,
    "ade20k_instance_train": list(range(100)),
    "cityscapes_fine_panoptic_train": list(range(11, 19)),
    "cityscapes_fine_instance_seg_train": list(range(8)),
    "mapillary_vistas_panoptic_train": MAPILLARY_THINGS,
    "coco_2017_train_panoptic": list(range(80)),
    "coco_2017_train": list(range(80)),
}
DATASETS = {  # name -> evaluator, and the file that is missing where nothing is there
    "ade20k_sem_seg_train": ("sem_seg", "ADEChallengeData2016/annotations_detectron2/training"),
    "ade20k_full_sem_seg_val": ("sem_seg", "ADE20K_2021_17_01/annotations_detectron2/validation"),
    "ade20k_instance_val": ("coco", "ADEChallengeData2016/ade20k_instance_val.json"),
    "ade20k_panoptic_train": ("ade20k_panoptic_seg", "ADEChallengeData2016/annotations_detectron2/training"),
    "cityscapes_fine_sem_seg_val": ("cityscapes_sem_seg", "cityscapes/leftImg8bit/val"),
    "cityscapes_fine_instance_seg_test": ("cityscapes_instance", "cityscapes/leftImg8bit/test"),
    "cityscapes_fine_panoptic_val": (
        "cityscapes_panoptic_seg",
        "cityscapes/gtFine/cityscapes_panoptic_val.json",
    ),
    "mapillary_vistas_sem_seg_train": ("sem_seg", "mapillary_vistas/training/labels"),
    "mapillary_vistas_panoptic_val": ("mapillary_vistas_panoptic_seg", "mapillary_vistas/validation/labels"),
    "mapillary_vistas_v2_sem_seg_val": ("sem_seg", "mapillary_vistas/config_v2.0.json"),
    "mapillary_vistas_v2_panoptic_val": (
        "mapillary_vistas_panoptic_seg",
        "mapillary_vistas/validation/v2.0/panoptic/panoptic_2020.json",
    ),
    "coco_2017_test_stuff_10k_sem_seg": ("sem_seg", "coco/coco_stuff_10k/annotations_detectron2/test"),
    "lvis_v1_val": ("lvis", "lvis/lvis_v1_val.json"),
    "lvis_v1_test_dev": ("lvis", "lvis/lvis_v1_image_info_test_dev.json"),
}


@pytest.mark.parametrize("name", list(filter(is_experiment, PUBLISHED)))
def test_published_configs_follow_from_their_datasets_without_files(name):
    published = {**DEFAULTS, **PUBLISHED[name]}
    cfg = load_config(name)
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list())
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = -1
    if "instance" in name:
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 255  # instances have no ignore label
    cfg = with_dataset_facts(cfg)
    assert published["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert published["MODEL.SEM_SEG_HEAD.IGNORE_VALUE"] == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    assert THINGS.get(cfg.DATASETS.TRAIN[0], []) == list(cfg.MODEL.MASK_FORMER.THING_IDS)


def test_class_names_and_official_ids():
    facts = MetadataCatalog.get
    ade = facts("ade20k_panoptic_val")
    assert (ade.stuff_classes[12], ade.stuff_classes[149], ade.thing_classes[0]) == ("person", "flag", "bed")
    assert (ade.official_label_ids, ade.official_ignore_label) == (list(range(1, 151)), 0)
    assert facts("ade20k_instance_val").thing_dataset_id_to_contiguous_id[149] == 99
    assert facts("ade20k_instance_val").thing_classes == ade.thing_classes
    full = facts("ade20k_full_sem_seg_val")
    assert (len(full.stuff_classes), full.ignore_label, full.stuff_classes[2]) == (847, 65535, "sky")
    cityscapes = facts("cityscapes_fine_panoptic_val")
    assert cityscapes.official_label_ids == list(cityscapes.stuff_dataset_id_to_contiguous_id)
    assert cityscapes.official_label_ids == CITYSCAPES_LABELS
    assert (cityscapes.stuff_classes[0], cityscapes.thing_classes[-1]) == ("road", "bicycle")
    mapillary = facts("mapillary_vistas_panoptic_val")
    assert mapillary.stuff_dataset_id_to_contiguous_id == {i + 1: i for i in range(65)}
    assert (mapillary.stuff_classes[63], mapillary.thing_classes[0]) == ("Car Mount", "Bird")
    table = json.loads((METADATA / "coco_stuff_labels_183.json").read_text())
    used = [row["name"] for row in table if row["id"] > 0 and row["id"] not in COCO_STUFF_UNUSED]
    assert facts("coco_2017_test_stuff_10k_sem_seg").stuff_classes == used
    assert (len(used), used[0], used[-1]) == (171, "person", "wood")


def test_evaluators():
    for name, (evaluator, _) in DATASETS.items():
        assert MetadataCatalog.get(name).evaluator_type == evaluator


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_file_is_named_with_the_command_that_makes_it(name, root):
    path = DATASETS[name][1]
    made = [script for start, script in PREPARED.items() if path.startswith(start)]
    hint = f"python datasets/{made[0]} --root {root}" if made else "datasets/README.md"
    message = f"{root / path} does not exist. .*{re.escape(hint)}.*export DETECTRON2_DATASETS="
    with pytest.raises(DatasetError, match=f"^{message}"):
        DatasetCatalog.get(name)


def test_the_scripts_that_errors_name_exist():
    assert {script for script in PREPARED.values() if not (ROOT / "datasets" / script).is_file()} == set()
