"""Copy-paste: objects of a donor lie on the image, and the targets say what can be seen."""

import pickle
from dataclasses import replace
from itertools import islice, product

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
    Segments,
    at_own_places,
    at_random_places,
    draw_objects,
    paste,
    with_copy_paste,
)
from mask2former.data.mapper import MAPPERS, build_train_mapper

ROWS_AND_COLUMNS = (6, 8)
THING, OTHER_THING, STUFF = 0, 1, 2
THINGS = torch.tensor([THING, OTHER_THING])


def rng_of(seed=0):
    return np.random.default_rng(seed)


def segments(color, *labeled, size=ROWS_AND_COLUMNS):
    """Return an image of one color with segments `(class, top, left, bottom, right)`."""
    masks = torch.zeros(len(labeled), *size, dtype=torch.bool)
    for mask, (_, *box) in zip(masks, labeled, strict=True):
        mask |= torch.from_numpy(rectangle(size, *box))
    classes = torch.tensor([label for label, *_ in labeled], dtype=torch.int64)
    return Segments(torch.full((3, *size), color, dtype=torch.uint8), classes, masks)


def noisy(seed, count, size=ROWS_AND_COLUMNS):
    """Return noise with `count` random segments, which overlap."""
    rng = rng_of(seed)
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    masks = rng.random((count, *size)) < 0.3
    return Segments(*map(torch.from_numpy, (image, rng.integers(0, 3, count), masks)))


def pasted_pixel_by_pixel(objects, target):
    image, segments_left = target.image.clone(), []
    height, width = target.size
    for y, x in product(range(height), range(width)):
        if any(mask[y, x] for mask in objects.masks):
            image[:, y, x] = objects.image[:, y, x]
    for label, mask in zip(target.classes.tolist(), target.masks, strict=True):
        kept = mask.clone()
        for y, x in product(range(height), range(width)):
            if any(other[y, x] for other in objects.masks):
                kept[y, x] = False
        segments_left.append((label, kept))
    segments_left += zip(objects.classes.tolist(), objects.masks, strict=True)
    return image, [(label, mask) for label, mask in segments_left if mask.any()]


@pytest.mark.parametrize(("objects", "below"), [(0, 3), (1, 3), (3, 4), (9, 2), (2, 0), (0, 0)])
def test_pasting_equals_a_loop_over_pixels(objects, below):
    for seed in range(5):
        pair = noisy(seed, objects), noisy(seed + 100, below)
        result, (image, expected) = paste(*pair), pasted_pixel_by_pixel(*pair)
        assert torch.equal(result.image, image)
        assert result.classes.tolist() == [label for label, _ in expected]
        assert all(torch.equal(mask, other) for mask, (_, other) in zip(result.masks, expected, strict=True))


def test_covered_segments_lose_pixels_or_disappear_and_void_stays():
    """The object covers the right thing, a part of the stuff, and two void pixels in the last row."""
    target = segments(10, (STUFF, 0, 0, 5, 8), (THING, 1, 1, 2, 2), (THING, 3, 5, 4, 6))
    target.masks[0] &= ~target.masks[1:].any(0)
    result = paste(segments(200, (OTHER_THING, 2, 5, 6, 7)), target)
    assert result.classes.tolist() == [STUFF, THING, OTHER_THING]
    assert result.masks.sum((1, 2)).tolist() == [5 * 8 - 1 - 3 * 2, 1, 4 * 2]
    assert result.masks.sum(0).max() == 1
    assert (~result.masks.any(0)).nonzero().tolist() == [[5, x] for x in (0, 1, 2, 3, 4, 7)]
    assert torch.equal(result.image[0] == 200, result.masks[2])
    assert (result.image[:, ~result.masks[2]] == 10).all()


def test_overlapping_objects_of_a_donor_share_their_pixels():
    objects = segments(200, (THING, 0, 0, 3, 3), (OTHER_THING, 1, 1, 4, 4))
    result = paste(objects, segments(10, (STUFF, 0, 0, 6, 8)))
    assert torch.equal(result.masks[1:], objects.masks)
    assert result.masks[0].sum() == 6 * 8 - 14


@pytest.mark.parametrize("size", [(4, 12), (9, 5), (3, 3)])
def test_objects_keep_their_places_in_an_image_of_another_size(size):
    objects = noisy(1, 3)
    moved = at_own_places(objects, size)
    assert (moved.size, moved.masks.shape) == (size, (3, *size))
    assert torch.equal(moved.classes, objects.classes)
    for y, x in product(*map(range, size)):
        inside = y < objects.size[0] and x < objects.size[1]
        assert torch.equal(moved.masks[:, y, x], objects.masks[:, y, x] if inside else torch.zeros(3) > 0)
        assert not inside or torch.equal(moved.image[:, y, x], objects.image[:, y, x])


def test_only_things_that_are_small_enough_are_drawn():
    """Areas are 4, 6, 48, 12; the square root of 6 is 2.45."""
    boxes = ((0, 0, 2, 2), (3, 0, 5, 3), (0, 0, 6, 8), (0, 4, 3, 8))
    donor = segments(0, *((label, *box) for label, box in zip((0, 1, 2, 1), boxes, strict=True)))
    for max_size, expected in ((0, {4, 6, 12}), (2.0, {4}), (2.44, {4}), (2.45, {4, 6}), (1.9, set())):
        drawn = [draw_objects(donor, THINGS, max_size, rng_of(seed)) for seed in range(60)]
        areas = [tuple(each.masks.sum((1, 2)).tolist()) for each in drawn]
        assert {area for each in areas for area in each} == expected
        assert {len(each) for each in areas} == ({*range(1, len(expected) + 1)} or {0})
        assert all(len({*each}) == len(each) for each in areas)
        assert {each[0] for each in areas if each} == expected  # any of them comes first
        for each, area in zip(drawn, areas, strict=True):
            assert each.classes.tolist() == [{4: 0, 6: 1, 12: 1}[value] for value in area]


def test_copies_are_whole_and_cover_neither_things_nor_one_another():
    objects = noisy(3, 2, size=(3, 4))
    objects.image.clamp_(min=1)
    occupied = torch.zeros(60, 80, dtype=torch.bool)
    occupied[20:50] = True
    places = set()
    for seed in range(10):
        copied = at_random_places(objects, 4, occupied, 99, rng_of(seed))
        assert copied.classes.tolist() == objects.classes.tolist() * 4
        assert copied.masks.sum(0).max() == 1 and not (copied.masks & occupied).any()
        assert torch.equal(copied.image.any(0), copied.masks.any(0))
        for number, mask in enumerate(copied.masks):
            original = objects.masks[number % 2]
            (y, x), (top, left) = (each.nonzero().min(0).values.tolist() for each in (mask, original))
            shift = torch.tensor([y - top, x - left])
            assert torch.equal(mask.nonzero() - shift, original.nonzero())
            assert torch.equal(copied.image[:, mask], objects.image[:, original])
            places.add((y, x))
    assert {y < 20 for y, _ in places} == {True, False} and len(places) > 60


@pytest.mark.parametrize(("size", "free"), [((1, 20), 0), ((20, 1), 0), ((6, 8), 0), ((6, 8), 1)])
def test_objects_without_a_free_place_are_left_out(size, free):
    occupied = torch.ones(size, dtype=torch.bool)
    occupied[:, :free] = False
    copied = at_random_places(segments(9, (THING, 1, 1, 3, 3)), 5, occupied, 99, rng_of())
    assert copied.size == size and copied.masks.shape == (0, *size) and copied.classes.dtype == torch.int64
    whole = paste(copied, segments(1, (STUFF, 0, 0, 1, 1), size=size))
    assert whole.classes.tolist() == [STUFF] and (whole.image == 1).all()


def test_the_first_copies_are_placed_if_there_is_room_for_few_segments():
    objects = segments(9, (THING, 0, 0, 1, 1), (OTHER_THING, 1, 1, 3, 2))
    nothing = torch.zeros(40, 40, dtype=torch.bool)
    for room in range(5):
        copied = at_random_places(objects, 3, nothing, room, rng_of())
        assert copied.classes.tolist() == [THING, OTHER_THING, THING, OTHER_THING][:room]


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
    plain = changed = 0
    for seed in range(60):
        sample, below = mapper(records[0], seed), mapper.mapper(records[0], seed)
        assert same(sample, pickle.loads(pickle.dumps(mapper))(records[0], seed))
        assert sample["seed"] == seed
        plain += same(sample, below)
        added = sample["instances"].gt_masks[len(below["instances"]) :].any(0)
        assert torch.equal(sample["image"][:, ~added], below["image"][:, ~added])
        changed += bool(added.any())
    assert plain + changed == 60
    assert 7 < changed < 24  # half of the samples have a donor, and half of those have things


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
