"""Averages over views against the mean of every view's dense scores, flipped back."""

import weakref

import pytest
import torch
from dense_resize import check_labels, dense_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import PeakMemory

from mask2former.modeling.postprocessing.inference import InferenceOptions
from mask2former.modeling.postprocessing.tta import post_process_views
from mask2former.modeling.predictions import ImagePrediction, Sizes

OUTPUT = (37, 50)


def drawn_views(shapes, flip, *, queries=5, classes=4, output=OUTPUT, seed=0):
    """Return views of random logits, of images (H, W) padded to multiples of 32."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for height, width in shapes:
        padded = (-(-height // 32) * 32, -(-width // 32) * 32)
        for flipped in (False, True) if flip else (False,):
            class_logits = torch.randn(queries, classes + 1, generator=generator) * 2
            masks = torch.randn(queries, padded[0] // 4, padded[1] // 4, generator=generator) * 4
            sizes = Sizes(padded, (height, width), output)
            views.append(ImagePrediction(class_logits.softmax(-1), masks, sizes, flipped))
    return views


def averaged(views, resize_first, *, compact, budget=2**28):
    options = InferenceOptions(tasks=("semantic",), resize_first=resize_first, memory_budget=budget)
    pixels = [view.sizes.image[0] * view.sizes.image[1] for view in views]
    return post_process_views(iter(views), pixels, options, compact=compact)


@settings(max_examples=25)
@given(
    shapes=st.lists(st.tuples(st.integers(8, 70), st.integers(8, 90)), min_size=1, max_size=3),
    flip=st.booleans(),
    resize_first=st.booleans(),
    budget=st.sampled_from([3_000, 2**28]),
    seed=st.integers(0, 99),
)
def test_averages_equal_the_mean_of_dense_scores(shapes, flip, resize_first, budget, seed):
    views = drawn_views(shapes, flip, seed=seed)
    expected = torch.stack([dense_scores(view, resize_first) for view in views]).mean(0)
    scores = averaged(views, resize_first, compact=False, budget=budget)["sem_seg"]
    assert torch.allclose(scores, expected, atol=1e-5)
    check_labels(averaged(views, resize_first, compact=True, budget=budget)["label_map"], expected)


@pytest.mark.parametrize("classes", [2, 60])  # the sum of scores is less than the logits, and more
def test_label_maps_from_logits_and_from_summed_scores_match_the_average(classes):
    views = drawn_views([(64, 96), (96, 128)], flip=True, queries=40, classes=classes)
    expected = torch.stack([dense_scores(view, False) for view in views]).mean(0)
    check_labels(averaged(views, False, compact=True)["label_map"], expected)


def test_the_majority_of_views_wins():
    sure, size = 12.0, (32, 32)
    sizes = Sizes(size, size, size)

    def view(winner, confidence, flipped=False):
        masks = torch.full((1, 8, 8), -sure)
        masks[..., :4] = sure  # the left half of what it sees
        logits = torch.zeros(1, 3)
        logits[0, winner] = confidence
        return ImagePrediction(logits.softmax(-1), masks, sizes, flipped)

    labels = averaged([view(0, 2.0), view(1, 3.0), view(0, 2.0)], True, compact=True)["label_map"]
    assert (labels[:, :8] == 0).all()  # twice 0.79 against 0.91
    labels = averaged([view(0, 2.0), view(1, 3.0, flipped=True)], True, compact=True)["label_map"]
    assert (labels[:, :8] == 0).all() and (labels[:, 24:] == 1).all()


def test_a_large_image_of_many_classes_is_never_held_as_scores():
    budget, output = 4 * 2**20, (600, 800)
    views = drawn_views([(64, 96), (96, 128)], flip=True, queries=20, classes=150, output=output)
    with PeakMemory() as memory:
        averaged(views, False, compact=True, budget=budget)
    assert output[0] * output[1] < memory.peak < 2 * budget  # all scores would take 288 MB


def test_with_few_classes_scores_are_summed_and_logits_not_held():
    made, most = [], 0

    def views():
        nonlocal most
        for seed in range(8):
            (view,) = drawn_views([(96, 128)], flip=False, queries=50, classes=2, seed=seed)
            made.append(weakref.ref(view.mask_logits))
            most = max(most, sum(logits() is not None for logits in made))
            yield view

    post_process_views(views(), [96 * 128] * 8, InferenceOptions(tasks=("semantic",)), compact=True)
    assert len(made) == 8 and most <= 3  # the first, which tells the sizes, the last, and the new one
