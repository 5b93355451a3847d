"""Mappers: the samples of each published name; images and masks stay aligned."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from synthetic_coco import COLORS, geometry_of, ground_truth_of, rectangle

from mask2former.config import get_cfg
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog
from mask2former.data.augmentation import Resize, Scene
from mask2former.data.catalog import Metadata
from mask2former.data.ground_truth.readers import read_panoptic_png
from mask2former.data.mapper import (
    MAPPERS,
    build_test_mapper,
    build_train_mapper,
    record_image,
    visible_instances,
)


def mapper_of(cfg, names, mapper_name):
    cfg.INPUT.DATASET_MAPPER_NAME = mapper_name
    name = names["instance" if "instance" in mapper_name else "panoptic"]
    return build_train_mapper(cfg, MetadataCatalog.get(name)), DatasetCatalog.get(name)


def only_flips_and_crops(cfg):
    """Set options with which every pixel is an original one, or padding."""
    cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, (0.5, 0.5)
    cfg.INPUT.SIZE_DIVISIBILITY = 40


@pytest.mark.parametrize("mapper_name", sorted(MAPPERS.keys() - {"detr_panoptic"}))  # that one always resizes
def test_masks_and_images_stay_aligned(cfg, names, mapper_name):
    """Each class has one color in the image, and each mask must cover just that color."""
    only_flips_and_crops(cfg)
    mapper, records = mapper_of(cfg, names, mapper_name)
    colors = [COLORS[category] for category in (0, 7, 90, 200)]
    seen = set()
    for seed in range(12):
        sample = mapper(records[0], seed)
        masks, classes = sample["instances"].gt_masks, sample["instances"].gt_classes
        assert masks.shape == (len(classes), *sample["image"].shape[1:])
        assert (masks.dtype, classes.dtype) == (torch.bool, torch.int64)
        assert masks.flatten(1).any(1).all()
        for label, mask in zip(classes.tolist(), masks, strict=True):
            same_color = (sample["image"] == torch.tensor(colors[label])[:, None, None]).all(0)
            assert torch.equal(mask, same_color)
            seen.add(label)
    assert seen == ({0, 1} if "instance" in mapper_name else {0, 1, 2, 3})


def noise_record(folder):
    """Write an image of 40x56 pixels; return its record with two instances, the first of two polygons."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    star = [10.03, 3.41, 30.27, 20.13, 3.77, 22.09, 25.61, 2.17, 17.33, 33.71]
    corner = [40.11, 30.19, 56.0, 30.37, 56.0, 40.0, 44.43, 40.0]
    annotations = [
        {"category_id": 1, "segmentation": [star, corner]},
        {"category_id": 0, "segmentation": [[45.21, 5.83, 52.77, 6.19, 48.57, 14.93]]},
    ]
    return {"file_name": folder / "noise.png", "image_id": 1, "annotations": annotations}


def published(record, steps):
    """Return image and masks by the published steps: corners are moved, then drawn by pycocotools."""
    flip, resize, crop, pad = steps
    image = Image.open(record["file_name"])
    if flip.axis == 1:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = image.size
    image = np.asarray(image.resize((resize.width, resize.height), Image.Resampling.BILINEAR))
    image = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    padding = ((0, pad.bottom), (0, pad.right))
    masks = []
    for annotation in record["annotations"]:
        polygons = []
        for points in annotation["segmentation"]:
            x, y = np.array(points).reshape(-1, 2).T
            x = (size[0] - x if flip.axis == 1 else x) * resize.width / size[0] - crop.left
            y = y * resize.height / size[1] - crop.top
            polygons.append(np.stack([x, y], axis=1).ravel().tolist())
        drawn = coco_mask.decode(coco_mask.frPyObjects(polygons, crop.height, crop.width)).any(-1)
        masks.append(np.pad(drawn, padding))
    return np.pad(image, (*padding, (0, 0)), constant_values=128), np.array(masks)


def test_large_scale_jitter_equals_the_published_one(cfg, names, tmp_path):
    """The drawn transforms are recorded, and applied one after the other."""
    cfg.INPUT.IMAGE_SIZE = 64
    mapper, _ = mapper_of(cfg, names, "coco_instance_lsj")
    record, steps = noise_record(tmp_path), []

    def recorded(augmentation, scene, rng):
        steps.append(augmentation(scene, rng))
        return steps[-1]

    mapper = replace(mapper, augmentations=[partial(recorded, each) for each in mapper.augmentations])
    for seed in range(30):
        steps.clear()
        sample = mapper(record, seed)
        image, masks = published(record, steps)
        assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - image).max() <= 2
        visible = masks.any((1, 2))
        assert sample["instances"].gt_classes.tolist() == np.array([1, 0])[visible].tolist()
        np.testing.assert_array_equal(sample["instances"].gt_masks.numpy(), masks[visible])


def corner_record(folder):
    """Write an image whose only object is in a corner that most crops do not show."""
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(folder / "corner.png")
    square = [0.0, 0.0, 16.0, 0.0, 16.0, 16.0, 0.0, 16.0]
    annotations = [{"category_id": 0, "segmentation": [square]}]
    return {"file_name": folder / "corner.png", "image_id": 1, "annotations": annotations}


def test_crops_without_an_object_are_drawn_again(cfg, names, tmp_path):
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 32, 2.0, 2.0
    record = corner_record(tmp_path)
    once, _ = mapper_of(cfg, names, "coco_instance_lsj")
    cfg.INPUT.EMPTY_REDRAWS = 60
    often, _ = mapper_of(cfg, names, "coco_instance_lsj")
    empty = 0
    for seed in range(20):
        first, last = once(record, seed), often(record, seed)
        assert len(last["instances"]) == 1 and last["instances"].gt_masks.any()
        assert last["image"].shape == first["image"].shape == (3, 32, 32)
        if len(first["instances"]):
            assert torch.equal(first["instances"].gt_masks, last["instances"].gt_masks)
        empty += not len(first["instances"])
    assert empty > 5


def test_an_image_without_objects_is_drawn_a_few_times_alone(cfg, names):
    cfg.INPUT.EMPTY_REDRAWS = 3
    mapper, records = mapper_of(cfg, names, "coco_instance_lsj")
    draws = []

    def counted(scene, rng):
        draws.append(rng)
        return Resize(32, 32)

    sample = replace(mapper, augmentations=[counted])(records[2], seed=0)
    assert len(sample["instances"]) == 0 and len(draws) == 4


def test_samples_have_the_documented_keys(cfg, names, synthetic):
    mapper, records = mapper_of(cfg, names, "coco_instance_lsj")
    sample = mapper(records[1], seed=2**62)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "instances", "seed"}
    assert (sample["image_id"], sample["height"], sample["width"], sample["seed"]) == (2, 20, 16, 2**62)
    assert sample["file_name"] == str(synthetic.images / "0002.png")
    assert (sample["image"].dtype, sample["image"].shape) == (torch.uint8, (3, 32, 32))
    assert sample["instances"].image_size == (32, 32)


def test_images_without_objects_give_no_masks(cfg, names):
    mapper, records = mapper_of(cfg, names, "coco_instance_lsj")
    for record in records[2:]:
        instances = mapper(record, seed=0)["instances"]
        assert instances.gt_masks.shape == (0, 32, 32)
        assert (instances.gt_masks.dtype, instances.gt_classes.dtype) == (torch.bool, torch.int64)


def test_masks_outside_of_the_crop_are_dropped():
    masks = np.stack([rectangle((8, 8), 0, 0, 2, 2), rectangle((8, 8), 5, 5, 8, 8)])
    geometry = geometry_of([4, 5, 6, 7], [4, 5, -1])
    scene = Scene(np.zeros((4, 3, 3), np.uint8), geometry, ground_truth_of(np.array([3, 6]), masks))
    instances = visible_instances(scene)
    assert instances.gt_classes.tolist() == [6]
    assert instances.gt_masks.int().tolist() == [[[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]]


def test_detrs_mapper_keeps_segments_that_the_crop_empties_and_no_crowds(cfg, names):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute_range", (100, 120)
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60)
    mapper, records = mapper_of(cfg, names, "detr_panoptic")
    *segments, last = records[0]["segments_info"]
    record = {**records[0], "segments_info": [*segments, {**last, "iscrowd": 1}]}
    shapes, numbers_shown = set(), set()
    for seed in range(20):
        sample = mapper(record, seed)
        masks, shape = sample["instances"].gt_masks, sample["image"].shape[1:]
        assert sample["instances"].gt_classes.tolist() == [segment["category_id"] for segment in segments]
        assert masks.shape == (len(segments), *shape) and masks.dtype == torch.bool
        assert masks.sum(0).max() <= 1
        shapes.add(shape)
        numbers_shown.add(int(masks.flatten(1).any(1).sum()))
        if shape in {(40, 53), (60, 80)}:  # a whole image of 24 x 32
            assert masks.flatten(1).any(1).all()
    assert {min(shape) for shape in shapes} == {40, 60} and len(shapes) > 4
    assert min(numbers_shown) < len(segments) == max(numbers_shown)


def test_pixels_without_a_label_belong_to_no_mask_of_detrs_mapper(cfg, names):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (0,), "none"
    mapper, records = mapper_of(cfg, names, "detr_panoptic")
    sample = mapper(records[0], 0)
    whole = read_panoptic_png(records[0], (24, 32))
    labeled = np.isin(whole, [s["id"] for s in records[0]["segments_info"] if not s["iscrowd"]])
    assert not labeled.all()
    np.testing.assert_array_equal(sample["instances"].gt_masks.any(0).numpy(), labeled)


def test_channels_are_in_the_order_of_the_config(cfg, names):
    only_flips_and_crops(cfg)
    rgb, records = mapper_of(cfg, names, "coco_instance_lsj")
    cfg.INPUT.FORMAT = "BGR"
    bgr, _ = mapper_of(cfg, names, "coco_instance_lsj")
    assert torch.equal(rgb(records[0], 1)["image"].flip(0), bgr(records[0], 1)["image"])
    test_image = build_test_mapper(cfg)({**records[0]})["image"]
    assert test_image[:, 0, 0].tolist() == list(COLORS[90])[::-1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASET_MAPPER_NAME", "coco", "MAPPER_NAME is 'coco'; it can be one of coco_instance_lsj, "),
        ("FORMAT", "L", "INPUT.FORMAT is 'L'; it can be one of RGB, BGR"),
    ],
)
def test_unknown_choices_are_errors_that_list_the_known(cfg, names, key, value, message):
    cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=message):
        build_train_mapper(cfg, MetadataCatalog.get(names["instance"]))


def test_test_samples_are_resized_and_keep_the_record(cfg, names, synthetic):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 12, 100
    record = DatasetCatalog.get(names["panoptic"])[0]
    sample = build_test_mapper(cfg)(record)
    image = Image.open(synthetic.images / "0001.png").resize((16, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(image))
    assert (sample["height"], sample["width"]) == (24, 32)
    assert sample["pan_seg_file_name"] == record["pan_seg_file_name"]
    assert sample["segments_info"] == record["segments_info"]
    assert "annotations" not in build_test_mapper(cfg)(DatasetCatalog.get(names["instance"])[0])


def test_images_are_turned_upright(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # show rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = record_image({"file_name": tmp_path / "turned.png", "image_id": 1, "height": 6, "width": 4})
    assert image.shape == (6, 4, 3)
    assert image[0, 3].tolist() == [255, 255, 255]


def test_unusable_images_are_errors(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("RGB", (4, 6)).save(tmp_path / "a.png")
    for name, message in (
        ("gone.jpg", "gone.jpg, image id 9: no such file"),
        ("text.jpg", "text.jpg, image id 9: is not an image"),
        ("a.png", r"is \(6, 4\), the annotations say \(4, 6\)"),
    ):
        with pytest.raises(DatasetError, match=message):
            record_image({"file_name": str(tmp_path / name), "image_id": 9, "height": 4, "width": 6})


def test_the_default_ignore_label_is_that_of_the_config(cfg, tmp_path):
    Image.new("RGB", (2, 3)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 1], [1, 9], [9, 9]], np.uint8)).save(tmp_path / "labels.png")
    record = {"image_id": 1, "file_name": tmp_path / "a.png", "sem_seg_file_name": tmp_path / "labels.png"}
    metadata = Metadata("own").set(stuff_classes=["a", "b"])
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = "mask_former_semantic", 9
    sample = build_train_mapper(cfg, metadata)(record, 0)
    assert sample["instances"].gt_classes.tolist() == [0, 1]
    mapper = build_train_mapper(cfg, metadata.set(ignore_label=1))
    with pytest.raises(DatasetError, match=r"label 9; valid are 0\.\.1, and 1 where"):
        mapper(record, 0)


def test_semantic_records_need_a_file_name_but_no_image_id(cfg, tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "labels.png")
    record = {"file_name": tmp_path / "a.png", "sem_seg_file_name": tmp_path / "labels.png"}
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    mapper = build_train_mapper(cfg, Metadata("own").set(stuff_classes=["a"]))
    assert mapper(record, 0)["image_id"] is None
    assert "image_id" not in build_test_mapper(cfg)(record)
    with pytest.raises(DatasetError, match=r"image id 3: no 'file_name' among \['image_id'\]"):
        mapper({"image_id": 3}, 0)


def test_the_default_config_builds_a_mapper():
    cfg = get_cfg()
    assert build_train_mapper(cfg, MetadataCatalog.get("coco_2017_val_panoptic")).image_format == "BGR"
