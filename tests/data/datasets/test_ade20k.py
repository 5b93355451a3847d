"""ADE20K: golden outputs of the published preparation, and the synthetic dataset prepared by our scripts."""

import shutil

import numpy as np
import pytest
from PIL import Image
from script_runs import run
from synthetic_datasets import ade20k, ade20k_full

from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.datasets.files import table
from mask2former.data.ground_truth.geometry import Geometry
from mask2former.data.ground_truth.readers import read_instances, read_panoptic, read_semantic, semantic_map


@pytest.fixture
def tree(root):
    ade20k.draw(root)
    run("prepare_ade20k", root)
    return root / "ADEChallengeData2016"


def truth(folder, kind, record):
    return np.asarray(Image.open(folder / kind / "validation" / f"{record['image_id']}.png")).astype(int)


def check_records(folder, split, count):
    """The three tasks against the raw PNGs: labels less 1, instances by their numbers."""
    instance, semantic, panoptic = (
        DatasetCatalog.get(f"ade20k_{task}_{split}") for task in ("instance", "sem_seg", "panoptic")
    )
    assert len(instance) == len(semantic) == len(panoptic) == count
    for record in instance:
        rgb = truth(folder, "annotations_instance", record)
        size = record["height"], record["width"]
        metadata = MetadataCatalog.get(f"ade20k_instance_{split}")
        segments = read_instances(record, metadata, size)
        which, masks = segments.visible(Geometry.identity(*size))
        found = {(int(segments.classes[i]) + 1, mask.tobytes()) for i, mask in zip(which, masks, strict=True)}
        numbers = np.unique(rgb[..., 1][rgb[..., 1] > 0])
        assert found == {(rgb[..., 0][rgb[..., 1] == n][0], (rgb[..., 1] == n).tobytes()) for n in numbers}
    for record in (*semantic, *panoptic):
        raw = truth(folder, "annotations", record)
        expected = np.where(raw == 0, 255, raw - 1)
        metadata = MetadataCatalog.get(f"ade20k_sem_seg_{split}")
        np.testing.assert_array_equal(semantic_map(record, metadata, raw.shape), expected)
    metadata = MetadataCatalog.get(f"ade20k_panoptic_{split}")
    for record in panoptic:
        segments = read_panoptic(record, metadata, (record["height"], record["width"]))
        things = [s["isthing"] for s in record["segments_info"]]
        expected = [int(c) in metadata.thing_ids for c in segments.classes]
        assert things == expected


def test_records_of_the_synthetic_dataset(tree):
    check_records(tree, "val", ade20k.COUNTS["val"])
    assert isinstance(DatasetCatalog.get("ade20k_panoptic_val")[0]["image_id"], str)
    counts = [len(record["annotations"]) for record in DatasetCatalog.get("ade20k_instance_val")]
    assert 0 in counts and max(counts) > 1


def test_real_images_prepared_by_the_published_scripts_are_read(shared, root):
    sample = shared / "data/samples/ade20k_challenge_derived"
    folder = root / "ADEChallengeData2016"
    folder.mkdir()
    for source in ("ADEChallengeData2016", "golden_from_mask2former_scripts"):
        for path in (sample / source).iterdir():
            (folder / path.name).symlink_to(path)
    check_records(folder, "val", 1)


def test_panoptic_records_need_the_label_maps(tree):
    shutil.rmtree(tree / "annotations_detectron2")
    with pytest.raises(DatasetError, match=r"detectron2/validation does not exist.*prepare_ade20k\.py"):
        DatasetCatalog.get("ade20k_panoptic_val")


def test_the_full_set_has_labels_of_16_bits(root):
    ade20k_full.draw(root)
    run("prepare_ade20k_full", root)
    metadata = MetadataCatalog.get("ade20k_full_sem_seg_val")
    records = DatasetCatalog.get("ade20k_full_sem_seg_val")
    assert len(records) == ade20k_full.COUNTS["val"]
    names = {row["full_ade20k_index"]: row["name"] for row in table("ade20k_full_847")}
    raw = {path.name.removesuffix("_seg.png"): path for path in root.rglob("*_seg.png")}
    for record in records:
        assert record["sem_seg_file_name"].endswith(".tif")
        red, green, _ = np.moveaxis(np.asarray(Image.open(raw[record["image_id"]])).astype(int), -1, 0)
        expected = [[names.get(index) for index in row] for row in red // 10 * 256 + green]
        found = semantic_map(record, metadata, red.shape)
        assert [[None if v == 65535 else metadata.stuff_classes[v] for v in row] for row in found] == expected
        assert read_semantic(record, metadata, red.shape).classes.max() < 847
