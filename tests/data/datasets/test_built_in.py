"""The built-in datasets: their facts without files, and the errors if files are missing."""

import json
from pathlib import Path

import pytest

from mask2former.config import load_config
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.datasets.files import METADATA, PREPARED
from mask2former.engine.setup.dataset_facts import with_dataset_facts

ROOT = Path(__file__).parents[3]
PUBLISHED = json.loads((ROOT / "tests/golden_files/configs.json").read_text())
ADE20K_STUFF = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    9,
    11,
    13,
    16,
    17,
    21,
    25,
    26,
    28,
    29,
    34,
    40,
    46,
    48,
    51,
    52,
    54,
    59,
    60,
]
ADE20K_STUFF += [
    61,
    63,
    68,
    77,
    79,
    84,
    91,
    94,
    96,
    99,
    100,
    101,
    105,
    106,
    109,
    113,
    114,
    117,
    122,
    128,
    131,
]
ADE20K_STUFF += [140, 141, 145]
MAPILLARY_THINGS = [0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), 59, 60, 61, 62]
CITYSCAPES_LABELS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
COCO_STUFF_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
THINGS = {
    "ade20k_panoptic_train": sorted(set(range(150)) - set(ADE20K_STUFF)),
    "ade20k_instance_train": list(range(100)),
    "cityscapes_fine_panoptic_train": list(range(11, 19)),
    "cityscapes_fine_instance_seg_train": list(range(8)),
    "mapillary_vistas_panoptic_train": MAPILLARY_THINGS,
    "coco_2017_train_panoptic": list(range(80)),
    "coco_2017_train": list(range(80)),
}
FIRST_LOOKED_FOR = {  # what is missing where nothing is there
    "ade20k_sem_seg_train": "ADEChallengeData2016/annotations_detectron2/training",
    "ade20k_full_sem_seg_val": "ADE20K_2021_17_01/annotations_detectron2/validation",
    "ade20k_instance_val": "ADEChallengeData2016/ade20k_instance_val.json",
    "ade20k_panoptic_train": "ADEChallengeData2016/annotations_detectron2/training",
    "cityscapes_fine_sem_seg_val": "cityscapes/leftImg8bit/val",
    "cityscapes_fine_instance_seg_test": "cityscapes/leftImg8bit/test",
    "cityscapes_fine_panoptic_val": "cityscapes/gtFine/cityscapes_panoptic_val.json",
    "mapillary_vistas_sem_seg_train": "mapillary_vistas/training/labels",
    "mapillary_vistas_panoptic_val": "mapillary_vistas/validation/labels",
    "mapillary_vistas_v2_sem_seg_val": "mapillary_vistas/config_v2.0.json",
    "mapillary_vistas_v2_panoptic_val": "mapillary_vistas/validation/v2.0/panoptic/panoptic_2020.json",
    "coco_2017_test_stuff_10k_sem_seg": "coco/coco_stuff_10k/annotations_detectron2/test",
    "lvis_v1_val": "lvis/lvis_v1_val.json",
    "lvis_v1_test_dev": "lvis/lvis_v1_image_info_test_dev.json",
}


@pytest.fixture(autouse=True)
def empty_root(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [name for name in PUBLISHED["configs"] if "/Base-" not in name])
def test_published_configs_follow_from_their_datasets_without_files(name):
    published = {**PUBLISHED["defaults"], **PUBLISHED["configs"][name]}
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
    kinds = {name: MetadataCatalog.get(name).evaluator_type for name in FIRST_LOOKED_FOR}
    assert kinds == {
        "ade20k_sem_seg_train": "sem_seg",
        "ade20k_full_sem_seg_val": "sem_seg",
        "ade20k_instance_val": "coco",
        "ade20k_panoptic_train": "ade20k_panoptic_seg",
        "cityscapes_fine_sem_seg_val": "cityscapes_sem_seg",
        "cityscapes_fine_instance_seg_test": "cityscapes_instance",
        "cityscapes_fine_panoptic_val": "cityscapes_panoptic_seg",
        "mapillary_vistas_sem_seg_train": "sem_seg",
        "mapillary_vistas_panoptic_val": "mapillary_vistas_panoptic_seg",
        "mapillary_vistas_v2_sem_seg_val": "sem_seg",
        "mapillary_vistas_v2_panoptic_val": "mapillary_vistas_panoptic_seg",
        "coco_2017_test_stuff_10k_sem_seg": "sem_seg",
        "lvis_v1_val": "lvis",
        "lvis_v1_test_dev": "lvis",
    }


@pytest.mark.parametrize("name", FIRST_LOOKED_FOR)
def test_a_missing_file_is_named_with_the_command_that_makes_it(name, empty_root):
    path = FIRST_LOOKED_FOR[name]
    with pytest.raises(DatasetError) as caught:
        DatasetCatalog.get(name)
    assert str(caught.value).startswith(f"{empty_root / path} does not exist. ")
    made = [script for start, script in PREPARED.items() if path.startswith(start)]
    hint = f"python datasets/{made[0]} --root {empty_root}" if made else "datasets/README.md"
    assert hint in str(caught.value)
    assert "export DETECTRON2_DATASETS=" in str(caught.value)


def test_the_scripts_that_errors_name_exist():
    assert {script for script in PREPARED.values() if not (ROOT / "datasets" / script).is_file()} == set()
