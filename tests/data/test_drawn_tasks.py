"""Tasks that training images draw: how often, from which random stream, and the targets that follow."""

import itertools
import json
from collections import Counter

import pytest
import torch
from synthetic_coco import compressed_rle, rectangle
from synthetic_datasets.drawing import read_ids

from mask2former.config import get_cfg
from mask2former.config.ranges import check_ranges
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, register_coco_panoptic
from mask2former.data.custom.dataset import register_custom_dataset
from mask2former.data.loader import build_train_loader, load_training_data
from mask2former.data.mapper import MAPPERS, build_train_mapper
from mask2former.data.records import Datasets
from mask2former.data.tasks import build_task_draw

TASKS = ("semantic", "instance", "panoptic")
NAME = "synthetic_joint"
DONUT, BOX, SKY, GROUND = range(4)  # contiguous ids
SHAPES = {  # instance annotations that differ from the panoptic ones: image id -> contiguous id, mask
    1: [(BOX, rectangle((24, 32), 9, 19, 21, 31)), (DONUT, rectangle((24, 32), 2, 3, 12, 13))],
    2: [(BOX, rectangle((20, 16), 0, 0, 9, 9))],
    3: [],
    5: [],
}


@pytest.fixture
def joint(synthetic, names):
    """Register the synthetic dataset with looser instance annotations than the panoptic ones."""
    content = json.loads(synthetic.instances_json.read_text())
    rows = [row for row in content["annotations"] if row["iscrowd"]]
    rows += [
        {"image_id": id, "category_id": {DONUT: 0, BOX: 7}[label], "segmentation": compressed_rle(mask)}
        for id, shapes in SHAPES.items()
        for label, mask in shapes
    ]
    synthetic.instances_json.write_text(json.dumps({**content, "annotations": rows}))
    paths = synthetic.images, synthetic.panoptic_root, synthetic.panoptic_json
    register_coco_panoptic(NAME, {}, *paths, synthetic.instances_json)
    return synthetic


def config(tasks=TASKS, shares=(), **changes):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.RANDOM_FLIP = "RGB", 32, "none"
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.SOLVER.TASKS, cfg.SOLVER.TASK_SHARES = tasks, shares
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 2, 0, 11
    for key, value in changes.items():
        setattr(cfg.INPUT, key, value)
    return cfg


def records_of(cfg):
    return {record["image_id"]: record for record in load_training_data(cfg, Datasets()).records}


def targets(task, name=NAME):
    """Return the targets of each image, not augmented: image id -> sorted pairs of class and mask."""
    cfg = config((task,), MIN_SIZE_TRAIN=(0,), DATASET_MAPPER_NAME="mask_former_panoptic")
    cfg.DATASETS.TRAIN = (name,)
    mapper = build_train_mapper(cfg, MetadataCatalog.get(name))
    found = {}
    for id, record in records_of(cfg).items():
        sample = mapper(record, seed=id)
        assert sample["task"] == task
        masks = sample["instances"].gt_masks.numpy()
        found[id] = pairs(zip(sample["instances"].gt_classes.tolist(), masks, strict=True))
    return found


def pairs(regions):
    return sorted((label, mask.tobytes()) for label, mask in regions)


def panoptic_regions(joint, with_crowds=False):
    """Return the segments in the files: image id -> pairs of class and mask."""
    classes = {0: DONUT, 7: BOX, 90: SKY, 200: GROUND}
    found = {}
    for row in json.loads(joint.panoptic_json.read_text())["annotations"]:
        ids = read_ids(joint.panoptic_root / row["file_name"])
        found[row["image_id"]] = [
            (classes[segment["category_id"]], ids == segment["id"])
            for segment in row["segments_info"]
            if with_crowds or not segment["iscrowd"]
        ]
    return found


def test_panoptic_targets_are_all_segments(joint):
    found = targets("panoptic")
    assert found == {id: pairs(regions) for id, regions in panoptic_regions(joint).items()}
    assert [len(regions) for regions in found.values()] == [4, 3, 2, 2]


def test_semantic_targets_are_one_mask_a_class_with_crowds(joint):
    """As mIoU is measured: a crowd of donuts is donut."""
    expected = {}
    for id, regions in panoptic_regions(joint, with_crowds=True).items():
        merged = {}
        for label, mask in regions:
            merged[label] = merged.get(label, False) | mask
        expected[id] = pairs(merged.items())
    assert targets("semantic") == expected
    assert [len(regions) for regions in expected.values()] == [4, 4, 3, 2]


def test_instance_targets_are_those_of_the_instance_annotations_with_panoptic_class_ids(joint):
    assert targets("instance") == {id: pairs(regions) for id, regions in SHAPES.items()}


def test_without_instance_annotations_they_are_the_things_of_the_panoptic_map(joint):
    """Custom data is such a dataset: its flags name no instance JSON, even where one lies beside it."""
    register_coco_panoptic("plain", {}, joint.images, joint.panoptic_root, joint.panoptic_json)
    register_custom_dataset("custom", str(joint.images), str(joint.panoptic_json))
    things = {
        id: pairs((label, mask) for label, mask in regions if label in (DONUT, BOX))
        for id, regions in panoptic_regions(joint).items()
    }
    assert targets("instance", "plain") == targets("instance", "custom") == things
    assert [len(regions) for regions in things.values()] == [2, 1, 0, 0]


def test_images_without_instances_are_trained_on(joint):
    """They have semantic and panoptic targets; the panoptic records decide how often an image occurs."""
    cfg = config()
    trained, plain = (load_training_data(c, Datasets()) for c in (cfg, config(())))
    assert [record["image_id"] for record in trained.records] == [1, 2, 3, 5]
    assert not trained.is_empty.any()
    assert list(trained.categories) == list(plain.categories)
    mapper = build_train_mapper(config(("instance",)), trained.metadata)
    sample = mapper(trained.records[3], seed=0)["instances"]
    assert sample.gt_masks.shape == (0, 32, 32) and sample.gt_masks.dtype == torch.bool


def test_the_instance_file_is_read_only_for_the_instance_task(joint):
    joint.instances_json.unlink()
    for tasks in ((), ("semantic", "panoptic")):
        assert all("annotations" not in record for record in records_of(config(tasks)).values())
    with pytest.raises(DatasetError, match=rf"{joint.instances_json}.* does not exist"):
        records_of(config())


def test_a_dataset_is_joined_once(joint, monkeypatch):
    datasets, parsed, load = Datasets(), [], json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or load(file))
    first, second = (load_training_data(config(), datasets) for _ in range(2))
    assert list(first.records) == list(second.records)
    assert parsed.count(str(joint.instances_json)) == 1


def test_tasks_are_drawn_equally_often_and_by_the_seed_alone():
    draw = build_task_draw(config().SOLVER)
    tasks = [draw(seed) for seed in range(6000)]
    assert tasks == [draw(seed) for seed in range(6000)]
    counts = Counter(tasks)
    assert counts.keys() == {*TASKS}
    assert all(abs(count - 2000) < 150 for count in counts.values())  # four standard deviations
    after = Counter(itertools.pairwise(tasks))
    assert all(abs(count - 6000 / 9) < 105 for count in after.values()) and len(after) == 9


def test_shares_say_how_often_a_task_is_drawn():
    draw = build_task_draw(config(TASKS, (1, 0, 3)).SOLVER)
    counts = Counter(draw(seed) for seed in range(4000))
    assert counts.keys() == {"semantic", "panoptic"}
    assert abs(counts["semantic"] - 1000) < 110


@pytest.mark.parametrize("mapper_name", ["coco_panoptic_lsj", "mask_former_panoptic"])
def test_every_task_sees_the_images_of_a_run_without_tasks(joint, mapper_name):
    """The draw does not touch the random stream of the augmentations."""
    augmented = {"RANDOM_FLIP": "horizontal", "MAX_SCALE": 2.0, "MIN_SIZE_TRAIN": (20, 40)}
    variants = [config(tasks, DATASET_MAPPER_NAME=mapper_name, **augmented) for tasks in ((), TASKS)]
    variants += [config((task,), DATASET_MAPPER_NAME=mapper_name, **augmented) for task in TASKS]
    for cfg in variants:
        cfg.INPUT.COLOR_AUG_SSD, cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, True, (0.5, 0.5)
    record = records_of(config())[1]
    mappers = [build_train_mapper(cfg, MetadataCatalog.get(NAME)) for cfg in variants]
    seen = set()
    for seed in range(20):
        plain, drawn, *single = (mapper(record, seed) for mapper in mappers)
        assert all(torch.equal(sample["image"], plain["image"]) for sample in (drawn, *single))
        assert "task" not in plain
        same = single[TASKS.index(drawn["task"])]["instances"]
        assert torch.equal(drawn["instances"].gt_masks, same.gt_masks)
        assert torch.equal(plain["instances"].gt_masks, single[2]["instances"].gt_masks)
        seen.add(drawn["task"])
    assert seen == {*TASKS}


def test_a_resumed_run_draws_the_tasks_of_an_uninterrupted_one(joint):
    def drawn(first_step, steps):
        batches = itertools.islice(iter(build_train_loader(config(), first_step)), steps)
        return [(sample["image_id"], sample["task"]) for batch in batches for sample in batch]

    whole = drawn(0, 9)
    assert drawn(4, 5) == whole[8:]
    assert {task for _, task in whole} == {*TASKS}
    assert drawn(0, 9) == whole


@pytest.mark.parametrize("mapper_name", sorted(name for name in MAPPERS if not MAPPERS[name].all_tasks))
def test_mappers_that_read_no_panoptic_annotations_are_refused(names, mapper_name):
    message = f"DATASET_MAPPER_NAME is {mapper_name}, but .* take coco_panoptic_lsj or mask_former_panoptic"
    with pytest.raises(ValueError, match=message):
        build_train_mapper(config(DATASET_MAPPER_NAME=mapper_name), MetadataCatalog.get(names["panoptic"]))


@pytest.mark.parametrize(
    ("tasks", "shares", "message"),
    [
        (TASKS, (1, 2), "TASK_SHARES has 2 numbers, but SOLVER.TASKS has 3 names: give one for each"),
        ((), (1,), "TASK_SHARES has 1 numbers, but SOLVER.TASKS has 0 names"),
        (TASKS, (0, 0, 0), r"TASK_SHARES is \(0, 0, 0\); at least one task needs a share above 0"),
    ],
)
def test_shares_that_do_not_fit_are_errors(tasks, shares, message):
    with pytest.raises(ValueError, match=message):
        build_task_draw(config(tasks, shares).SOLVER)


def test_shares_are_not_negative():
    with pytest.raises(ValueError, match=r"SOLVER.TASK_SHARES is \(1, -1, 1\); it must be from 0"):
        check_ranges(config(TASKS, (1, -1, 1)))


def test_videos_have_no_tasks(restored_catalogs):
    DatasetCatalog.register("clips", lambda: [{"annotations": [[{"category_id": 0}]], "file_names": ["a"]}])
    MetadataCatalog.get("clips").set(evaluator_type="ytvis", thing_classes=["disc"])
    cfg = config()
    cfg.DATASETS.TRAIN = ("clips",)
    with pytest.raises(ValueError, match=r"'clips' holds videos, but SOLVER\.TASKS are for images"):
        build_train_loader(cfg)


def test_pasted_objects_are_those_of_the_annotations_of_the_task(joint):
    """Objects at random places are whole, so their areas tell where they come from."""
    for task, regions in (("instance", SHAPES), ("panoptic", panoptic_regions(joint))):
        cfg = config((task,), MIN_SIZE_TRAIN=(0,), DATASET_MAPPER_NAME="mask_former_panoptic")
        cfg.INPUT.COPY_PASTE.PROBABILITY, cfg.INPUT.COPY_PASTE.COPIES = 1.0, 3
        samples = itertools.chain(*itertools.islice(build_train_loader(cfg), 10))
        added = [sample["instances"].gt_masks[len(regions[sample["image_id"]]) :] for sample in samples]
        things = [mask for pairs in regions.values() for label, mask in pairs if label in (DONUT, BOX)]
        assert {*torch.cat([masks.sum((1, 2)) for masks in added]).tolist()} == {
            mask.sum() for mask in things
        }
