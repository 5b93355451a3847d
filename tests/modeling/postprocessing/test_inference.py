import json
from collections import Counter

import numpy as np
import pytest
import torch
from dense_resize import check_labels, dense_scores, resize_whole
from golden import COCO_THINGS, DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from mask2former.modeling.postprocessing import tiles
from mask2former.modeling.postprocessing.inference import InferenceOptions, post_process
from mask2former.modeling.postprocessing.instance import predict_instances
from mask2former.modeling.postprocessing.panoptic import panoptic_segments
from mask2former.modeling.postprocessing.semantic import semantic_label_map, semantic_scores
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.structures import RunLengthMasks

BUDGET = 2**28
CASES = sorted((DATA / "golden" / "inference").glob("*.npz"))


def predicted(class_logits, mask_logits, sizes=None):
    """Return a prediction with these sizes, by default those at which nothing is resized."""
    size = tuple(mask_logits.shape[1:])
    return ImagePrediction(class_logits.softmax(-1), mask_logits, sizes or Sizes(size, size, size))


# --- the recorded cases ---


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    with np.load(request.param) as file:
        arrays = dict(file)
    logits = (torch.from_numpy(arrays[f"{name}_logits"]).float() for name in ("class", "mask"))
    return arrays, predicted(*logits)


def test_all_recorded_cases_exist():
    assert len(CASES) == 8


@pytest.mark.parametrize("budget", [BUDGET, 40_000])
def test_recorded_panoptic(case, budget):
    arrays, prediction = case
    found, segments = panoptic_of(
        prediction,
        thing_ids=COCO_THINGS,
        object_mask_threshold=float(arrays["object_mask_threshold"]),
        overlap_threshold=float(arrays["overlap_threshold"]),
        memory_budget=budget,
    )
    expected = [[s["id"], s["category_id"], s["isthing"]] for s in segments]
    assert expected == arrays["segments"].tolist()
    assert (found.numpy() != arrays["panoptic"]).mean() <= 1e-3
    assert found.dtype == torch.int32


@pytest.mark.parametrize("budget", [BUDGET, 40_000])
def test_recorded_semantic(case, budget):
    arrays, prediction = case
    scores = semantic_scores(prediction, resize_first=True, memory_budget=budget)
    assert np.allclose(scores.sum((1, 2)).numpy(), arrays["sem_sum"], rtol=1e-4, atol=1e-3)
    assert (scores.argmax(0).numpy() != arrays["sem_argmax"]).mean() <= 1e-3
    labels = semantic_label_map(prediction, resize_first=True, memory_budget=budget)
    assert (labels.numpy() != arrays["sem_argmax"]).mean() <= 1e-3


@pytest.mark.parametrize(("prefix", "thing_ids"), [("instances", None), ("thing_instances", COCO_THINGS)])
def test_recorded_instances(case, prefix, thing_ids):
    arrays, prediction = case
    found = predict_instances(prediction, max_instances=100, thing_ids=thing_ids, memory_budget=BUDGET)
    areas = found.pred_masks.areas()
    expected = zip(*(arrays[f"{prefix}.{name}"].tolist() for name in ("classes", "areas")), strict=True)
    assert Counter(zip(found.pred_classes.tolist(), areas.tolist(), strict=True)) == Counter(expected)
    scores = np.sort(arrays[f"{prefix}.scores"])[::-1]
    assert np.allclose(found.scores.numpy(), scores, atol=1e-5)  # sorted, as ours are


# --- a drawing by hand ---

THING, STUFF, OTHER = 0, 1, 2
DRAWING = {  # class, probability, and a mask of which each pixel is sure
    "a thing": (THING, 0.95, ["##..", "##..", "....", "...."]),
    "stuff below": (STUFF, 0.9, ["....", "....", "####", "...."]),
    "the same stuff again": (STUFF, 0.9, ["....", "....", "....", "####"]),
    "hidden by the thing": (OTHER, 0.85, ["##..", "###.", "....", "...."]),
    "the last class is no object": (3, 0.99, ["####", "####", "####", "####"]),
    "not sure enough": (THING, 0.5, ["..##", "..##", "....", "...."]),
}


OPTIONS = InferenceOptions(thing_ids=(THING,))


def draw(queries):
    class_logits, mask_logits = [], []
    for label, probability, rows in queries:
        others = torch.full((4,), (1 - probability) / 3)
        others[label] = probability
        class_logits.append(others.log())
        mask_logits.append(torch.tensor([[9.0 if cell == "#" else -9.0 for cell in row] for row in rows]))
    return predicted(torch.stack(class_logits), torch.stack(mask_logits))


def panoptic_of(prediction, **changes):
    thresholds = {"object_mask_threshold": 0.8, "overlap_threshold": 0.8}
    given = {"thing_ids": [THING], "memory_budget": BUDGET, **thresholds, **changes}
    return panoptic_segments(prediction, **given)[:2]


def test_panoptic_of_a_drawing():
    found, segments = panoptic_of(draw(DRAWING.values()))
    # The hidden query wins one pixel of its five, less than 0.8; the two stuffs are one segment.
    assert found.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert segments == [
        {"id": 1, "isthing": True, "category_id": THING},
        {"id": 2, "isthing": False, "category_id": STUFF},
    ]
    assert json.loads(json.dumps(segments)) == segments  # plain values


def test_a_lower_overlap_threshold_keeps_a_hidden_query():
    found, segments = panoptic_of(draw(DRAWING.values()), overlap_threshold=0.2)
    assert found[1, 2] == 3 and [s["category_id"] for s in segments] == [THING, STUFF, OTHER]


def test_things_of_a_class_are_separate_and_stuff_is_one_segment():
    queries = draw([(THING, 0.9, ["#..."] * 4), (THING, 0.9, ["..##"] * 4)])
    assert panoptic_of(queries)[0].tolist() == [[1, 0, 2, 2]] * 4
    found, segments = panoptic_of(queries, thing_ids=())
    assert found.tolist() == [[1, 0, 1, 1]] * 4
    assert segments == [{"id": 1, "isthing": False, "category_id": THING}]


def test_no_query_above_the_threshold_gives_an_empty_result():
    found, segments = panoptic_of(draw(DRAWING.values()), object_mask_threshold=0.999)
    assert segments == [] and found.tolist() == [[0] * 4] * 4 and found.dtype == torch.int32


def test_a_query_that_wins_only_outside_its_mask_is_no_segment():
    assert panoptic_of(draw([(THING, 0.9, ["...."] * 4)]), overlap_threshold=0.0)[1] == []


def instances_of(queries, count=1, **changes):
    return predict_instances(draw(queries), max_instances=count, memory_budget=BUDGET, **changes)


def test_instances_of_a_drawing():
    found = instances_of([DRAWING["a thing"], DRAWING["stuff below"]], count=2)
    assert found.pred_classes.tolist() == [THING, STUFF]
    sure = torch.tensor(9.0).sigmoid().item()
    assert found.scores.tolist() == pytest.approx([0.95 * sure, 0.9 * sure], rel=1e-5)
    assert found.pred_boxes.tolist() == [[0, 0, 2, 2], [0, 2, 4, 3]]
    assert found.pred_masks.dense().sum().item() == 8 and found.pred_masks[0].dtype == torch.bool


def test_no_more_instances_than_pairs_of_query_and_class():
    found = instances_of([DRAWING["a thing"]], count=100)
    assert len(found) == 3 and found.pred_classes.sort().values.tolist() == [0, 1, 2]


def test_things_are_selected_among_the_best_pairs():
    queries = [DRAWING["a thing"], DRAWING["stuff below"]]
    assert instances_of(queries, count=2, thing_ids=[THING]).pred_classes.tolist() == [THING]


@pytest.mark.parametrize("things, classes", [(None, [THING, STUFF]), ([THING], [THING, THING])])
def test_proposals_are_each_query_once_with_its_best_class(things, classes):
    queries = [DRAWING["a thing"], DRAWING["stuff below"]]
    found = instances_of(queries, count=100, thing_ids=things, one_class_per_query=True)
    assert found.pred_classes.tolist() == classes
    assert found.pred_boxes.tolist() == [[0, 0, 2, 2], [0, 2, 4, 3]]


def test_empty_instances_have_the_output_size():
    prediction = draw([DRAWING["a thing"]])._replace(sizes=Sizes((16, 16), (15, 12), (30, 20)))
    found = predict_instances(prediction, max_instances=1, thing_ids=[OTHER], memory_budget=BUDGET)
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 30, 20) and found.pred_boxes.shape == (0, 4)


def test_an_empty_mask_has_zero_score_and_box():
    found = instances_of([(THING, 0.9, ["...."] * 4)])
    assert found.scores.tolist() == [0] and found.pred_boxes.tolist() == [[0, 0, 0, 0]]


# --- against a slow reference implementation ---


def slow_panoptic(probabilities, mask_logits, thing_ids, object_threshold, overlap_threshold):
    """Process whole maps, query by query."""
    num_classes = probabilities.shape[1] - 1
    kept = []
    for classes, mask in zip(probabilities, mask_logits.sigmoid(), strict=True):
        label = int(classes.argmax())
        if label != num_classes and classes[label] > object_threshold:
            kept.append((label, float(classes[label]), mask))
    found = torch.zeros(mask_logits.shape[1:], dtype=torch.int64)
    segments, stuff = [], {}
    if not kept:
        return found, segments
    winner = torch.stack([p * mask for _, p, mask in kept]).argmax(0)
    for i, (label, _, mask) in enumerate(kept):
        won, own = winner == i, mask >= 0.5
        if not (won & own).any() or won.sum().item() / own.sum().item() < overlap_threshold:
            continue
        if label in stuff:
            found[won & own] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in thing_ids, "category_id": label})
        found[won & own] = len(segments)
        if label not in thing_ids:
            stuff[label] = len(segments)
    return found, segments


sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=80)
@given(
    size=sides,
    queries=st.integers(1, 6),
    thresholds=st.tuples(st.sampled_from([0.0, 0.3, 0.6]), st.sampled_from([0.0, 0.5, 0.8])),
    budget=st.sampled_from([1, 2000, BUDGET]),
    seed=st.integers(0, 999),
)
def test_panoptic_equals_the_reference_implementation(size, queries, thresholds, budget, seed):
    random = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(queries, 4, generator=random)
    prediction = predicted(class_logits, 4 * torch.randn(queries, *size, generator=random))
    found, segments = panoptic_of(
        prediction,
        thing_ids=[0, 2],
        object_mask_threshold=thresholds[0],
        overlap_threshold=thresholds[1],
        memory_budget=budget,
    )
    expected, expected_segments = slow_panoptic(*prediction[:2], [0, 2], *thresholds)
    assert segments == expected_segments
    assert torch.equal(found.long(), expected)


@settings(max_examples=60)
@given(
    image=sides,
    output=sides,
    queries=st.integers(1, 5),
    budget=st.sampled_from([1, 3000, BUDGET]),
    seed=st.integers(0, 99),
)
def test_semantic_and_instances_equal_the_reference_implementation(image, output, queries, budget, seed):
    random = torch.Generator().manual_seed(seed)
    sizes = Sizes((12, 12), image, output)
    class_logits = torch.randn(queries, 4, generator=random)
    mask_logits = torch.randn(queries, 3, 3, generator=random)
    prediction = predicted(class_logits, mask_logits, sizes)
    probabilities = prediction.probabilities[:, :-1]
    resized = resize_whole(mask_logits, sizes)
    for resize_first in (True, False):
        options = {"resize_first": resize_first, "memory_budget": budget}
        scores = semantic_scores(prediction, **options)
        assert torch.allclose(scores, dense_scores(prediction, resize_first), atol=1e-5)
        check_labels(semantic_label_map(prediction, **options), scores)
    found = predict_instances(prediction, max_instances=4, memory_budget=budget)
    check_instances(found, probabilities, resized, min(4, probabilities.numel()))


def check_instances(found, probabilities, resized, count):
    """Check that each instance is one of the best pairs, with its query's mask and score."""
    assert len(found) == count
    masks = resized > 0
    confidence = (resized.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    pairs = [divmod(i, probabilities.shape[1]) for i in probabilities.flatten().topk(count).indices.tolist()]
    scores = {(q, k): float(probabilities[q, k] * confidence[q]) for q, k in pairs}
    assert found.scores.tolist() == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
    for label, score, mask in zip(found.pred_classes.tolist(), found.scores, found.pred_masks, strict=True):
        fits = [
            (mask != masks[q]).sum() for (q, k), s in scores.items() if k == label and abs(s - score) < 1e-5
        ]
        assert min(fits) <= 0.001 * mask.numel() + (resized.abs() < 1e-5).sum()


# --- together ---


def test_results_follow_the_tasks():
    prediction = draw(DRAWING.values())
    everything = post_process(prediction, InferenceOptions(thing_ids=(THING,)))
    assert set(everything) == {"sem_seg", "panoptic_seg", "instances"}
    assert set(everything["instances"].pred_classes.tolist()) == {THING}
    alone = post_process(prediction, InferenceOptions(tasks=("instance",)))
    assert set(alone) == {"instances"}
    assert set(alone["instances"].pred_classes.tolist()) == {THING, STUFF, OTHER}


def test_compact_results_equal_the_plain_ones():
    prediction = predicted(torch.randn(9, 5), torch.randn(9, 12, 16), Sizes((48, 64), (40, 60), (90, 110)))
    options = InferenceOptions(thing_ids=(0, 2))
    plain = post_process(prediction, options)
    compact = post_process(prediction, options, compact=True)
    assert torch.equal(compact["label_map"].long(), plain["sem_seg"].argmax(0))
    assert torch.equal(compact["panoptic_seg"][0], plain["panoptic_seg"][0])
    assert isinstance(compact["instances"].pred_masks, RunLengthMasks)
    assert torch.equal(compact["instances"].pred_masks.dense(), plain["instances"].pred_masks)
    assert compact["best_query_score"] == prediction.probabilities[:, :-1].max()


def test_compact_results_tell_the_query_of_each():
    queries = list(DRAWING.values())
    found = post_process(
        draw([*queries[::-1], (THING, 0.9, ["..##", "..##", "....", "...."])]), OPTIONS, compact=True
    )
    classes = [segment["category_id"] for segment in found["panoptic_seg"][1]]
    # The order is now: not sure, no object, hidden, stuff, stuff, thing, and the one added
    assert list(zip(found["segment_queries"], classes, strict=True)) == [(3, STUFF), (5, THING), (6, THING)]
    instances = found["instances"]
    assert instances.pred_queries[:3].tolist() == [5, 6, 0]
    assert instances.scores[:3].tolist() == pytest.approx([0.95, 0.9, 0.5], abs=1e-3)
    plain = post_process(draw(queries), OPTIONS)
    assert "segment_queries" not in plain and not plain["instances"].has("pred_queries")


def blobs(count, height, width, seed):
    """Mask logits that are confident almost everywhere, as a trained model's are."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 3, 4, generator=random)
    return 12 * interpolate(coarse, size=(height, width), mode="bicubic")[0] - 3


@pytest.mark.parametrize("resize_first", [True, False])
@pytest.mark.parametrize("tile", [7**2, 30**2])
def test_skipped_maps_do_not_change_results(monkeypatch, resize_first, tile):
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    sizes = Sizes((96, 128), (90, 120), (161, 203))
    class_logits = 4 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    mask_logits = blobs(20, 24, 32, seed=1)
    prediction = predicted(class_logits, mask_logits, sizes)
    options = {"resize_first": resize_first, "memory_budget": BUDGET}
    check_labels(semantic_label_map(prediction, **options), semantic_scores(prediction, **options))
    found, segments = panoptic_of(
        prediction, thing_ids=[0, 1], object_mask_threshold=0.1, overlap_threshold=0.1
    )
    resized = resize_whole(mask_logits, sizes)
    expected, expected_segments = slow_panoptic(prediction.probabilities, resized, [0, 1], 0.1, 0.1)
    assert segments == expected_segments and len(segments) > 3
    assert (found != expected).sum() <= (resized.abs() < 1e-4).sum()
    masks = predict_instances(prediction, max_instances=12, memory_budget=BUDGET).pred_masks
    assert len({mask.sum().item() for mask in masks} - {0}) > 3
    for mask in masks:
        assert min((mask != one).sum() for one in resized > 0) <= (resized.abs() < 1e-4).sum()


@pytest.fixture
def coarse_products():
    """Restore the precision of matrix products afterwards."""
    yield lambda: torch.set_float32_matmul_precision("medium")
    torch.set_float32_matmul_precision("highest")


def test_autocast_and_low_precision_products_do_not_affect_results(coarse_products):
    sizes = Sizes((48, 64), (40, 60), (90, 110))
    prediction = predicted(torch.randn(9, 5), 5 * torch.randn(9, 12, 16), sizes)
    options = InferenceOptions(thing_ids=(0, 2))
    expected = post_process(prediction, options)
    coarse_products()
    with torch.autocast("cpu", torch.bfloat16):
        found = post_process(prediction, options)
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert torch.get_float32_matmul_precision() == "medium"
