"""DETR's results against a literal version with Pillow's resizing, and cases worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mask2former.modeling.detr.postprocessing import detr_panoptic, detr_results, nearest
from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.predictions import ImagePrediction, Sizes

THINGS = (0, 1)
CLASSES = 4  # two things, two kinds of stuff
OPTIONS = InferenceOptions(
    tasks=("instance", "panoptic"), thing_ids=THINGS, object_mask_threshold=0.5, overlap_threshold=0.0
)


def prediction(labels, logits, output, *, image=None, padded=None, score=0.9):
    """Return the prediction of queries that are sure of their class; the class `CLASSES` is "no object"."""
    probabilities = torch.full((len(labels), CLASSES + 1), (1 - score) / CLASSES)
    probabilities[torch.arange(len(labels)), torch.tensor(labels)] = score
    shape = (4 * logits.shape[1], 4 * logits.shape[2])
    boxes = torch.tensor([[0.25, 0.0, 1.25, 0.5]]).repeat(len(labels), 1)
    return ImagePrediction(probabilities, logits, Sizes(padded or shape, image or shape, output), boxes=boxes)


def pillow_nearest(array, size):
    image = Image.fromarray(np.asarray(array, dtype=np.int32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))


def logits_at_image_size(found):
    height, width = found.sizes.image
    return F.interpolate(found.mask_logits[None], found.sizes.padded, mode="bilinear")[0, :, :height, :width]


def literal_panoptic(found, threshold, smallest=5):
    """Return a map of query numbers (-1: none) by the rules of the released code, and the queries left."""
    scores, labels = found.probabilities.max(-1)
    left = [q for q, label in enumerate(labels.tolist()) if label != CLASSES and scores[q] > threshold]
    logits, first = logits_at_image_size(found), True
    while left:
        numbers = torch.tensor(left)[logits[left].argmax(0)].numpy()
        if first:
            for query in left:
                same = [q for q in left if labels[q] == labels[query] and labels[q] not in THINGS]
                numbers[np.isin(numbers, same)] = same[0] if same else -1
            first = False
        numbers = pillow_nearest(numbers, found.sizes.output)
        areas = [(numbers == query).sum() for query in left]
        if min(areas) >= smallest:
            return numbers, left
        left = [query for query, area in zip(left, areas, strict=True) if area >= smallest]
    return np.full(found.sizes.output, -1), []


@pytest.mark.parametrize("output", [(50, 61), (96, 128), (200, 301)])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 4], [2, 0, 3, 4, 1], [2, 2, 3, 3, 2]], ids=str)
def test_panoptic_results_equal_the_literal_version(labels, output):
    generator = torch.Generator().manual_seed(sum(output))
    coarse = torch.randn(1, len(labels), 5, 6, generator=generator)
    logits = F.interpolate(coarse, (25, 33), mode="bicubic")[0]
    found = prediction(labels, logits, output, padded=(100, 132), image=(93, 120))
    ids, segments, _ = detr_panoptic(found, OPTIONS)
    numbers, left = literal_panoptic(found, 0.5)
    assert [segment["id"] for segment in segments] == [*range(1, len(left) + 1)]
    for segment, query in zip(segments, left, strict=True):
        assert segment["category_id"] == labels[query]
        assert segment["isthing"] == (labels[query] in THINGS)
        assert np.array_equal(ids.numpy() == segment["id"], numbers == query)
    assert ids.dtype == torch.int32 and (ids > 0).all() == bool(left)


def stripes(*starts, width=16, height=8):
    """Return logits of queries that are each sure of the columns from their start to the next one."""
    columns = torch.arange(width)
    ends = [*starts[1:], width]
    maps = [((columns >= start) & (columns < end)).float() for start, end in zip(starts, ends, strict=True)]
    return 10 * torch.stack(maps)[:, None].expand(-1, height, -1)


def test_stuff_of_one_class_is_contested_not_merged():
    """Without its second query, the pixels of the grass go to the query that comes next there."""
    logits = stripes(0, 4, 12).clone()
    logits[1, :, 12:] = 5  # a thing is the runner-up
    ids, segments, _ = detr_panoptic(prediction([2, 0, 2], logits, (8, 16)), OPTIONS)
    assert [segment["category_id"] for segment in segments] == [2, 0]
    assert (ids[:, :3] == 1).all() and (ids[:, 5:] == 2).all()


def test_small_segments_are_dropped_and_their_pixels_given_to_others():
    logits = stripes(0, 8).clone()
    tiny = torch.full((1, 8, 16), -10.0)
    tiny[0, 0, 0] = 30
    found = prediction([0, 1, 1], torch.cat([logits, tiny]), (8, 16))
    ids, segments, _ = detr_panoptic(found, OPTIONS)
    assert len(segments) == 2 and (ids[:, 0] == 1).all()
    large = detr_panoptic(found._replace(sizes=found.sizes._replace(output=(80, 160))), OPTIONS)
    assert len(large[1]) == 3


@pytest.mark.parametrize(("pixels", "segments"), [(4, 1), (5, 2)])
def test_a_segment_has_at_least_five_pixels(pixels, segments):
    small = torch.full((8, 16), -10.0)
    small[3, 2 : 2 + pixels] = 10
    ids, found, _ = detr_panoptic(prediction([0, 1], torch.stack([-small, small]), (8, 16)), OPTIONS)
    assert len(found) == segments
    assert (ids == 2).sum() == (pixels if segments == 2 else 0)


@pytest.mark.parametrize("labels", [[4, 4], [0, 1]], ids=["no object", "unsure"])
def test_no_query_above_the_threshold(labels):
    ids, segments, _ = detr_panoptic(prediction(labels, stripes(0, 8), (8, 16), score=0.4), OPTIONS)
    assert not segments and not ids.any() and ids.shape == (8, 16)


@pytest.mark.parametrize("compact", [True, False])
def test_instances_are_things_by_score_with_the_predicted_boxes(compact):
    logits = stripes(0, 4, 8, 12)
    found = prediction([1, 2, 0, 4], logits, (33, 70))
    found.probabilities[2] = torch.tensor([0.6, 0.2, 0.1, 0.05, 0.05])
    instances = detr_results(found, OPTIONS, compact=compact)["instances"]
    assert instances.pred_classes.tolist() == [1, 0, 0]  # the last: the best class of "no object"
    assert instances.scores.tolist() == pytest.approx([0.9, 0.6, 0.025])
    assert instances.pred_boxes[0].tolist() == [17.5, 0.0, 70.0, 16.5]
    masks = np.asarray(instances.pred_masks)
    for mask, query in zip(masks, (0, 2, 3), strict=True):
        expected = pillow_nearest(logits_at_image_size(found)[query] > 0, (33, 70))
        assert np.array_equal(mask, expected.astype(bool))


def test_instances_are_limited_and_of_all_classes_without_panoptic_output():
    found = prediction([1, 2, 0, 3], stripes(0, 4, 8, 12), (8, 16))
    every = InferenceOptions(tasks=("instance",), max_instances=3)
    assert detr_results(found, every)["instances"].pred_classes.tolist() == [1, 2, 0]


def test_compact_results_have_the_best_score():
    found = prediction([4, 1], stripes(0, 8), (8, 16))
    assert detr_results(found, OPTIONS, compact=True)["best_query_score"].item() == pytest.approx(0.9)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (30, 11), (64, 64)])
def test_nearest_is_pillows(size):
    array = torch.arange(17 * 23).view(17, 23)
    assert np.array_equal(nearest(array, size).numpy(), pillow_nearest(array, size))
