"""Labels of folders that do not say what is a thing."""

import json

import pytest
import torch

from mask2former.config import load_config
from mask2former.data import MetadataCatalog
from mask2former.engine.setup.known_classes import lacks_things, with_known_classes
from mask2former.engine.setup.trained_model import stored_config
from mask2former.weights.load import Checkpoint

THING_IDS = "MODEL.MASK_FORMER.THING_IDS"


def folder(labels, processor=None, **values):
    """What reading a folder of the hub returns."""
    values = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(labels), "MODEL.SWIN.EMBED_DIM": 12, **values}
    return Checkpoint(
        file="hub",
        model={"a": torch.zeros(1)},
        config=json.dumps(values),
        metadata={"stuff_classes": labels},
        extra={"hub": {"config.json": {"model_type": "mask2former"}, "preprocessor_config.json": processor}},
    )


def names_of(dataset):
    metadata = MetadataCatalog.get(dataset).as_dict()
    return list(metadata.get("stuff_classes") or metadata["thing_classes"])


DATASETS = {  # dataset -> tasks, published config
    "coco_2017_val_panoptic": ("SIP", "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"),
    "coco_2017_val": ("I", "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"),
    "ade20k_panoptic_val": ("SIP", "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml"),
    "ade20k_instance_val": ("SIP", "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml"),
    "cityscapes_fine_panoptic_val": ("SIP", "cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml"),
    "cityscapes_fine_instance_seg_val": (
        "I",
        "cityscapes/instance-segmentation/maskformer2_R50_bs16_90k.yaml",
    ),
    "mapillary_vistas_panoptic_val": (
        "SP",
        "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml",
    ),
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_labels_of_a_known_dataset_give_things_tasks_and_the_published_rules(dataset):
    tasks, published = DATASETS[dataset]
    metadata, reference = MetadataCatalog.get(dataset).as_dict(), load_config(published)
    names = names_of(dataset)
    completed = with_known_classes(folder(names))
    cfg = stored_config(completed)
    assert list(cfg.MODEL.MASK_FORMER.THING_IDS) == metadata["thing_ids"] == completed.metadata["thing_ids"]
    test = cfg.MODEL.MASK_FORMER.TEST
    assert tasks == "".join(t[0] for t in ("SEMANTIC", "INSTANCE", "PANOPTIC") if test[f"{t}_ON"])
    assert test.OBJECT_MASK_THRESHOLD == reference.MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD
    assert cfg.INPUT.MIN_SIZE_TEST == reference.INPUT.MIN_SIZE_TEST
    assert cfg.MODEL.SWIN.EMBED_DIM == 12
    colors = "stuff_colors" if "stuff_colors" in metadata else "thing_colors"
    assert completed.metadata[colors] == [list(color) for color in metadata[colors]]


def test_names_may_be_shortened_and_a_few_may_be_others():
    """The hub's files for ADE20K have "road" for "road, route", and "bed " and "windowpane"."""
    names = [name.split(",")[0].upper() + " " for name in names_of("ade20k_sem_seg_val")]
    names[8] = "windowpane"
    assert not lacks_things(with_known_classes(folder(names)))
    assert lacks_things(with_known_classes(folder(names[1:] + names[:1])))


def test_a_size_of_the_folder_that_keeps_the_shape_wins():
    names = names_of("ade20k_panoptic_val")
    assert stored_config(folder(names)).INPUT.MIN_SIZE_TEST == 640
    assert stored_config(folder(names, **{"INPUT.MIN_SIZE_TEST": 800})).INPUT.MIN_SIZE_TEST == 800


def test_other_labels_leave_semantic_segmentation_and_advice(caplog):
    checkpoint = folder(["a", "b"], {"size": {"height": 384, "width": 512}})
    cfg = stored_config(checkpoint)
    test = cfg.MODEL.MASK_FORMER.TEST
    assert (test.SEMANTIC_ON, test.INSTANCE_ON, test.PANOPTIC_ON) == (True, False, False)
    assert test.OBJECT_MASK_THRESHOLD == 0.8
    assert cfg.INPUT.MIN_SIZE_TEST == 384
    assert f"mask2former convert FOLDER model.pth {THING_IDS}" in caplog.text
    caplog.clear()
    assert stored_config(checkpoint, [THING_IDS, "[1]"]).MODEL.MASK_FORMER.THING_IDS == [1]
    assert not caplog.text


def test_a_checkpoint_that_is_no_folder_or_knows_its_things_stays():
    bare = Checkpoint("x.pth", {}, config="SEED: 3", metadata={"stuff_classes": names_of("coco_2017_val")})
    known = with_known_classes(folder(names_of("coco_2017_val")))
    assert with_known_classes(bare) is bare
    assert with_known_classes(known) is known
