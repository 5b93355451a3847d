"""Copy-paste: objects of a donor lie on the image, and the targets say what can be seen."""

import pickle
from dataclasses import replace
from itertools import islice, product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from synthetic_coco import COLORS, rectangle

from mask2former.config import get_cfg
from mask2former.data import DatasetCatalog, DatasetError, MetadataCatalog, build_train_loader
from mask2former.data.catalog import Metadata
from mask2former.data.clips import build_clip_train_mapper
from mask2former.data.copy_paste import (
    CopyPaste,
    at_random_places,
    cut_out,
    draw_objects,
    merged_by_class,
    paste,
    union,
    with_copy_paste,
)
from mask2former.data.mapper import MAPPERS, build_train_mapper
from mask2former.structures import Instances

SIZE = (6, 8)
THING, OTHER_THING, STUFF = 0, 1, 2
THINGS = torch.tensor([THING, OTHER_THING])


def rng_of(seed=0):
    return np.random.default_rng(seed)


class Segments(NamedTuple):
    """An image (3, h, w) with classes (N,) and masks (N, h, w)."""

    image: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor

    @property
    def instances(self):
        return Instances(tuple(self.image.shape[1:]), gt_classes=self.classes, gt_masks=self.masks)

    @property
    def cutouts(self):
        """Return all segments as objects, except those without a pixel."""
        pairs = zip(self.classes.tolist(), self.masks, strict=True)
        return [cut_out(self.image, label, mask) for label, mask in pairs if mask.any()]


def segments(color, *labeled, size=SIZE):
    """Return an image of one color with segments `(class, top, left, bottom, right)`."""
    masks = torch.zeros(len(labeled), *size, dtype=torch.bool)
    for mask, (_, *box) in zip(masks, labeled, strict=True):
        mask |= torch.from_numpy(rectangle(size, *box))
    classes = torch.tensor([label for label, *_ in labeled], dtype=torch.int64)
    return Segments(torch.full((3, *size), color, dtype=torch.uint8), classes, masks)


def noisy(seed, count, size=SIZE, density=0.3):
    """Return noise with `count` random segments, which overlap."""
    rng = rng_of(seed)
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    masks = rng.random((count, *size)) < density
    return Segments(*map(torch.from_numpy, (image, rng.integers(0, 3, count), masks)))


def pasted(objects, target):
    image, instances = paste(objects.cutouts, target.image, target.instances)
    return Segments(image, instances.gt_classes, instances.gt_masks)


def pasted_pixel_by_pixel(objects, target):
    """Return the image, and the segments that are left as (class, mask)."""
    size, donor_size = target.image.shape[1:], objects.image.shape[1:]
    image, below = target.image.clone(), target.masks.clone()
    above = torch.zeros(len(objects.masks), *size, dtype=torch.bool)
    for y, x in product(*map(range, size)):
        for number, mask in enumerate(objects.masks):
            if y < donor_size[0] and x < donor_size[1] and mask[y, x]:
                image[:, y, x] = objects.image[:, y, x]
                below[:, y, x] = False
                above[number, y, x] = True
    labels = [*target.classes.tolist(), *objects.classes.tolist()]
    return image, [(k, mask) for k, mask in zip(labels, [*below, *above], strict=True) if mask.any()]


@pytest.mark.parametrize("donor_size", [SIZE, (9, 5), (4, 12), (3, 3)])
@pytest.mark.parametrize(("objects", "below"), [(0, 3), (1, 3), (3, 4), (9, 2), (2, 0), (0, 0)])
def test_pasting_equals_a_loop_over_pixels(donor_size, objects, below):
    """Objects keep their places in an image of another size; what lies outside of it is cut off."""
    for seed, density in product(range(3), (0.3, 0.03)):
        pair = noisy(seed, objects, donor_size, density), noisy(seed + 100, below)
        kept = pair[1].image.clone(), pair[1].masks.clone()
        result, (image, expected) = pasted(*pair), pasted_pixel_by_pixel(*pair)
        assert torch.equal(result.image, image)
        assert result.classes.tolist() == [label for label, _ in expected]
        assert all(torch.equal(mask, other) for mask, (_, other) in zip(result.masks, expected, strict=True))
        assert torch.equal(pair[1].image, kept[0]) and torch.equal(pair[1].masks, kept[1])


def test_covered_segments_lose_pixels_or_disappear_and_void_stays():
    """The object covers the right thing, a part of the stuff, and two void pixels in the last row."""
    target = segments(10, (STUFF, 0, 0, 5, 8), (THING, 1, 1, 2, 2), (THING, 3, 5, 4, 6))
    target.masks[0] &= ~target.masks[1:].any(0)
    result = pasted(segments(200, (OTHER_THING, 2, 5, 6, 7)), target)
    assert result.classes.tolist() == [STUFF, THING, OTHER_THING]
    assert result.masks.sum((1, 2)).tolist() == [5 * 8 - 1 - 3 * 2, 1, 4 * 2]
    assert result.masks.sum(0).max() == 1
    assert (~result.masks.any(0)).nonzero().tolist() == [[5, x] for x in (0, 1, 2, 3, 4, 7)]
    assert torch.equal(result.image[0] == 200, result.masks[2])
    assert (result.image[:, ~result.masks[2]] == 10).all()


def test_overlapping_objects_of_a_donor_share_their_pixels():
    objects = segments(200, (THING, 0, 0, 3, 3), (OTHER_THING, 1, 1, 4, 4))
    result = pasted(objects, segments(10, (STUFF, 0, 0, 6, 8)))
    assert torch.equal(result.masks[1:], objects.masks)
    assert result.masks[0].sum() == 6 * 8 - 14


def test_only_things_that_are_small_enough_are_drawn():
    """Areas are 4, 6, 48, 12; the square root of 6 is 2.45."""
    boxes = ((0, 0, 2, 2), (3, 0, 5, 3), (0, 0, 6, 8), (0, 4, 3, 8))
    donor = segments(7, *((label, *box) for label, box in zip((0, 1, 2, 1), boxes, strict=True)))
    places = {4: (0, 0, 0), 6: (1, 3, 0), 12: (1, 0, 4)}  # class, top, left
    for max_size, expected in ((0, {4, 6, 12}), (2.0, {4}), (2.44, {4}), (2.45, {4, 6}), (1.9, set())):
        counts, first = set(), set()
        for seed in range(60):
            drawn = draw_objects(donor.image, donor.instances, THINGS, max_size, rng_of(seed))
            areas = [int(one.mask.sum()) for one in drawn]
            assert len({*areas}) == len(areas) and {*areas} <= expected
            assert [(one.label, one.top, one.left) for one in drawn] == [places[area] for area in areas]
            assert all((one.pixels == 7).all() for one in drawn)
            counts.add(len(areas))
            first |= {*areas[:1]}
        assert counts == ({*range(1, len(expected) + 1)} or {0})
        assert first == expected


def test_objects_at_random_places_cover_neither_occupied_pixels_nor_one_another():
    objects = noisy(3, 2, size=(3, 4))
    occupied = torch.zeros(60, 80, dtype=torch.bool)
    occupied[20:50] = True
    places = set()
    for seed in range(10):
        placed = at_random_places(objects.cutouts * 4, occupied, 99, rng_of(seed))
        assert [one.label for one in placed] == objects.classes.tolist() * 4
        shown = torch.zeros(60, 80, dtype=torch.int64)
        for one, original in zip(placed, objects.cutouts * 4, strict=True):
            assert torch.equal(one.mask, original.mask) and torch.equal(one.pixels, original.pixels)
            assert 0 <= one.top <= 60 - len(one.mask) and 0 <= one.left <= 80 - len(one.mask[0])
            one.box_of(shown[None])[0].add_(one.mask.long())
            places.add((one.top, one.left))
        assert shown.max() == 1 and not shown[occupied].any()
    assert {top < 20 for top, _ in places} == {True, False} and len(places) > 60


@pytest.mark.parametrize(("size", "free"), [((1, 20), 20), ((20, 1), 1), (SIZE, 0), (SIZE, 1)])
def test_objects_without_a_free_place_are_left_out(size, free):
    occupied = torch.ones(size, dtype=torch.bool)
    occupied[:, :free] = False
    assert at_random_places(segments(9, (THING, 1, 1, 3, 3)).cutouts * 5, occupied, 99, rng_of()) == []


def test_the_first_objects_are_placed_if_there_is_room_for_few_segments():
    objects = segments(9, (THING, 0, 0, 1, 1), (OTHER_THING, 1, 1, 3, 2)).cutouts * 3
    for room in range(5):
        placed = at_random_places(objects, torch.zeros(40, 40, dtype=torch.bool), room, rng_of())
        assert [one.label for one in placed] == [THING, OTHER_THING, THING, OTHER_THING][:room]


def test_masks_of_one_class_are_merged():
    parts = noisy(5, 6)._replace(classes=torch.tensor([2, 0, 2, 5, 0, 2]))
    merged = merged_by_class(parts.instances)
    assert merged.gt_classes.tolist() == [0, 2, 5]
    for label, mask in zip((0, 2, 5), merged.gt_masks, strict=True):
        assert torch.equal(mask, parts.masks[parts.classes == label].any(0))
        assert torch.equal(mask, union(parts.masks[parts.classes == label], SIZE))
    assert len(merged_by_class(noisy(0, 0).instances)) == 0


@pytest.fixture
def pasting(cfg, names):
    """Return a function that builds the pasting mapper of a published name, and returns its records too."""

    def build(mapper_name="coco_panoptic_lsj", **options):
        cfg.INPUT.DATASET_MAPPER_NAME = mapper_name
        cfg.INPUT.MIN_SCALE = cfg.INPUT.MAX_SCALE = 1.0
        cfg.INPUT.MIN_SIZE_TRAIN = (0,)
        for key, value in {"PROBABILITY": 1.0, **options}.items():
            cfg.INPUT.COPY_PASTE[key] = value
        name = names["instance" if "instance" in mapper_name else "panoptic"]
        records = DatasetCatalog.get(name)
        mapper = build_train_mapper(cfg, MetadataCatalog.get(name))
        return with_copy_paste(cfg, mapper, records), records

    return build


FITTING = ["coco_instance_lsj", "coco_panoptic_lsj", "mask_former_instance", "mask_former_panoptic"]


@pytest.mark.parametrize("copies", [0, 3])
@pytest.mark.parametrize("mapper_name", FITTING)
def test_each_mask_covers_the_color_of_its_class(pasting, mapper_name, copies):
    """Classes have one color each in the images; large-scale jitter would mix the colors of small ones."""
    mapper, records = pasting(mapper_name, COPIES=copies)
    mapper = replace(mapper, records=records[:1] if mapper_name.endswith("lsj") else records)
    colors, counts = [COLORS[category] for category in (0, 7, 90, 200)], set()
    for seed in range(15):
        sample = mapper(records[0], seed)
        masks, classes = sample["instances"].gt_masks, sample["instances"].gt_classes
        assert masks.shape == (len(classes), *sample["image"].shape[1:])
        assert masks.flatten(1).any(1).all() and masks.sum(0).max() == 1
        assert {"file_name", "image_id", "height", "width", "seed"} < sample.keys()
        for label in {*classes.tolist()}:
            same_color = (sample["image"] == torch.tensor(colors[label])[:, None, None]).all(0)
            assert torch.equal(masks[classes == label].any(0), same_color)
        counts.add(int((classes < 2).sum()))
    assert max(counts) > 2


@pytest.mark.parametrize("copies", [0, 3])
def test_targets_of_each_task_are_right(pasting, cfg, copies):
    """With one task drawn at a time, masks of a class cover its color as in the test above."""
    colors = [COLORS[category] for category in (0, 7, 90, 200)]
    for task in ("semantic", "instance", "panoptic"):
        cfg.SOLVER.TASKS = (task,)
        mapper, records = pasting(COPIES=copies)
        mapper, counts = replace(mapper, records=records[:1]), set()
        for seed in range(8):
            sample = mapper(records[0], seed)
            masks, classes = sample["instances"].gt_masks, sample["instances"].gt_classes
            assert sample["task"] == task and masks.sum(0).max() == 1
            shown = {0, 1} if task == "instance" else {0, 1, 2, 3}
            assert {*classes.tolist()} == shown
            for label in shown:
                same_color = (sample["image"] == torch.tensor(colors[label])[:, None, None]).all(0)
                assert torch.equal(masks[classes == label].any(0), same_color)
            counts.add(len(classes) - len(shown))
        assert counts == {0} if task == "semantic" else max(counts) > 0


def test_tasks_are_drawn_as_without_pasting(pasting, cfg):
    cfg.SOLVER.TASKS = ("semantic", "instance", "panoptic")
    mapper, records = pasting()
    tasks = [mapper(records[0], seed)["task"] for seed in range(20)]
    assert tasks == [mapper.mapper(records[0], seed)["task"] for seed in range(20)]
    assert len({*tasks}) == 3


def same(first, second):
    """Return True if two samples have the same image and segments."""
    return (
        torch.equal(first["image"], second["image"])
        and torch.equal(first["instances"].gt_classes, second["instances"].gt_classes)
        and torch.equal(first["instances"].gt_masks, second["instances"].gt_masks)
    )


def test_the_seed_decides_all_and_the_image_itself_is_augmented_as_without_pasting(pasting):
    mapper, records = pasting(PROBABILITY=0.5, COPIES=2)
    assert isinstance(mapper, CopyPaste)
    copied = pickle.loads(pickle.dumps(mapper))  # as worker processes get it
    plain = changed = 0
    for seed in range(40):
        sample, below = mapper(records[0], seed), mapper.mapper(records[0], seed)
        assert same(sample, copied(records[0], seed))
        assert sample["seed"] == seed
        plain += same(sample, below)
        added = sample["instances"].gt_masks[len(below["instances"]) :].any(0)
        assert torch.equal(sample["image"][:, ~added], below["image"][:, ~added])
        changed += bool(added.any())
    assert plain + changed == 40
    assert 4 < changed < 17  # half of the samples have a donor, and half of those have things


def test_no_sample_gets_more_segments_than_there_are_queries(pasting, cfg):
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 6  # the first image has four segments
    for copies in (0, 9):
        mapper, records = pasting(COPIES=copies)
        counts = [len(mapper(records[0], seed)["instances"]) for seed in range(20)]
        assert max(counts) == 6
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 3
    mapper, records = pasting(COPIES=2)
    assert {len(mapper(records[0], seed)["instances"]) for seed in range(9)} == {4}


def test_a_broken_donor_is_an_error_that_names_its_own_file(pasting, synthetic):
    mapper, records = pasting()
    (synthetic.panoptic_root / "0005.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^\S+panoptic/0005\.png, image id 5: "):
        [mapper(records[0], seed) for seed in range(40)]


def samples_of(cfg, steps, first=0):
    batches = islice(build_train_loader(cfg, first), steps)
    return [sample for batch in batches for sample in batch]


def test_the_loader_pastes_alike_with_workers_and_after_a_resume(cfg):
    alone = samples_of(cfg, 6)
    cfg.INPUT.COPY_PASTE.PROBABILITY, cfg.INPUT.COPY_PASTE.COPIES = 0.8, 2
    pasted = samples_of(cfg, 6)
    assert [one["seed"] for one in pasted] == [one["seed"] for one in alone]
    assert 0 < sum(map(same, pasted, alone)) < len(alone)
    assert all(map(same, samples_of(cfg, 3, first=3), pasted[6:]))
    cfg.DATALOADER.NUM_WORKERS = 2
    assert all(map(same, samples_of(cfg, 3), pasted))


def test_without_copy_paste_the_mapper_itself_is_returned(cfg, names):
    cfg.INPUT.COPY_PASTE.MAX_SIZE, cfg.INPUT.COPY_PASTE.COPIES = 12.0, 3
    mapper = build_train_mapper(cfg, MetadataCatalog.get(names["instance"]))
    assert with_copy_paste(cfg, mapper, []) is mapper


@pytest.mark.parametrize("mapper_name", sorted(MAPPERS.keys() - {*FITTING}))
def test_samples_without_separate_objects_are_refused(pasting, mapper_name):
    with pytest.raises(
        ValueError, match=rf"COPY_PASTE needs one of {', '.join(FITTING)} .* not {mapper_name};"
    ):
        pasting(mapper_name)


def test_videos_and_datasets_without_things_are_refused():
    cfg = get_cfg()
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.5
    metadata = Metadata("fields").set(stuff_classes=["a"], thing_classes=[])
    with pytest.raises(ValueError, match=r"COPY_PASTE is for images, and DATASETS\.TRAIN holds videos"):
        with_copy_paste(cfg, build_clip_train_mapper(cfg, metadata), [])
    for name in ("coco_panoptic_lsj", "coco_instance_lsj"):
        cfg.INPUT.DATASET_MAPPER_NAME = name
        with pytest.raises(ValueError, match=r"COPY_PASTE pastes things, but dataset 'fields' has none$"):
            with_copy_paste(cfg, build_train_mapper(cfg, metadata), [])
