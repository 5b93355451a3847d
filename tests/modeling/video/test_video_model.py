"""Clips in, losses or tracks out: against dense logits, against the model for images, and wrong inputs."""

import functools

import pytest
import torch
from peak_memory import PeakMemory
from tiny_clips import CLASSES, IMAGES, drawn_clip, tiny_video_model
from torch.nn import functional as F

from mask2former.modeling.precision import set_precision
from mask2former.modeling.predictions import Predictions
from mask2former.modeling.video import clips
from mask2former.structures import Instances

KEYS = {f"loss_{term}{layer}" for term in ("ce", "mask", "dice") for layer in ("", "_0", "_1")}


@functools.cache
def model():
    """Return one model for the tests that change neither its weights nor its settings."""
    return tiny_video_model()


@functools.cache
def image_model():
    """Return a model for images with the same weights."""
    images = tiny_video_model(**IMAGES)
    images.load_state_dict(model().state_dict())
    return images


def image_of(clip, frame=0):
    """Return a frame of a clip as an image with targets, without the ids of its tracks."""
    instances = clip["instances"][frame]
    targets = Instances(instances.image_size, gt_classes=instances.gt_classes, gt_masks=instances.gt_masks)
    return {"image": clip["image"][frame], "file_name": clip["file_names"][frame], "instances": targets}


def slow_tracks(clip, count=10):
    """Return scores, labels and masks of the best tracks, by dense logits at full size."""
    height, width = clip["image"][0].shape[1:]
    images = model()._images([{"image": frame} for frame in clip["image"]])
    with torch.no_grad():
        predictions = model().network(images[None])
    scores = predictions.layers[-1].class_logits[0].softmax(-1)[:, :-1]
    pairs = [(float(scores[q, k]), q, k) for q in range(len(scores)) for k in range(CLASSES)]
    best = sorted(pairs, reverse=True)[:count]
    logits = predictions.mask_logits()[0, [q for _, q, _ in best]]
    logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
    size = (clip["height"], clip["width"])
    logits = F.interpolate(logits[..., :height, :width], size, mode="bilinear", align_corners=False)
    return [score for score, _, _ in best], [label for _, _, label in best], logits > 0


def test_the_answer_is_that_of_dense_logits():
    clip = drawn_clip(40, 50) | {"height": 61, "width": 83}
    found = model()([clip])
    scores, labels, masks = slow_tracks(clip)
    assert found.keys() == {"image_size", "pred_scores", "pred_labels", "pred_masks"}
    assert (found["image_size"], found["pred_labels"]) == ((61, 83), labels)
    assert found["pred_scores"] == pytest.approx(scores, rel=1e-5)
    for mask, expected in zip(found["pred_masks"], masks, strict=True):
        assert (mask.dtype, mask.shape, mask.device.type) == (torch.bool, (3, 61, 83), "cpu")
        assert (mask != expected).float().mean() < 1e-3
    assert {mask.float().mean().item() for mask in found["pred_masks"]} - {0.0, 1.0}


def test_compact_masks_are_runs_of_the_same_masks():
    clip = drawn_clip(40, 50)
    (compact,), (dense,) = model().predict([clip], compact=True), model().predict([clip])
    assert compact["image_size"] == (40, 50)
    assert compact["pred_scores"] == dense["pred_scores"]
    for runs, masks in zip(compact["pred_masks"], dense["pred_masks"], strict=True):
        assert len(runs) == 3
        assert torch.equal(runs.dense(), masks)


def test_there_are_no_more_tracks_than_pairs_of_query_and_class():
    few = tiny_video_model(MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=2)
    few.inference = model().inference
    assert len(few([drawn_clip(40, 50)])["pred_scores"]) == 2 * CLASSES


@pytest.mark.parametrize("pixels", [1, 2 * 40 * 50])
def test_frames_in_chunks_give_the_same_tracks(pixels, monkeypatch):
    clip = drawn_clip(40, 50, num_frames=5)
    whole = model()._clip_maps(clip)
    monkeypatch.setattr(clips, "PIXELS_AT_ONCE", pixels)
    assert [len(chunk) for chunk in clips.chunks(clip)] == ([1] * 5 if pixels == 1 else [2, 2, 1])
    for parts, maps in zip(model()._clip_maps(clip), whole, strict=True):
        torch.testing.assert_close(parts, maps, atol=1e-5, rtol=1e-4)


def test_frames_are_read_one_by_one_from_any_sequence():
    class Decoder:
        """A film that decodes a frame when it is asked for."""

        frames = drawn_clip(40, 50, num_frames=4)["image"]

        def __len__(self):
            return len(self.frames)

        def __getitem__(self, index):
            return self.frames[index]

    film = model()([{"image": Decoder()}])
    assert film["pred_scores"] == model()([{"image": Decoder.frames}])["pred_scores"]


def test_memory_of_a_clip_grows_by_its_maps_and_not_by_images_or_full_masks(monkeypatch):
    monkeypatch.setattr(clips, "PIXELS_AT_ONCE", 1)
    peaks = []
    for num_frames in (2, 6):
        clip = drawn_clip(64, 96, num_frames=num_frames) | {"height": 320, "width": 480}
        with PeakMemory() as memory, torch.no_grad():
            model().predict([clip], compact=True)
        peaks.append(memory.peak)
    full_masks = 10 * 320 * 480 * 4
    assert peaks[1] - peaks[0] < full_masks  # of four frames more, the logits of one would be this


def test_losses_of_a_batch_with_different_sizes_are_those_of_padded_clips():
    small, large = drawn_clip(20, 60, seed=1), drawn_clip(64, 33, tracks=1, seed=2)
    batch = [{**clip, "seed": seed} for seed, clip in enumerate((small, large))]
    padded = [
        {
            **clip,
            # The mean of pixels is what padding holds after normalization
            "image": [pad_with_mean(frame) for frame in clip["image"]],
            "instances": [pad_masks(instances) for instances in clip["instances"]],
        }
        for clip in batch
    ]
    found, expected = model().losses(batch), model().losses(padded)
    assert found.keys() == KEYS
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4, msg=key)


def pad_with_mean(frame):
    padded = model().pixel_mean.expand(3, 64, 64).clone()
    padded[:, : frame.shape[1], : frame.shape[2]] = frame
    return padded


def pad_masks(instances):
    masks = torch.zeros(len(instances), 64, 64, dtype=torch.bool)
    masks[:, : instances.image_size[0], : instances.image_size[1]] = instances.gt_masks
    return Instances((64, 64), **{**instances.get_fields(), "gt_masks": masks})


def test_predictions_of_a_clip_do_not_depend_on_the_others_of_a_batch():
    pair = torch.randn(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model().network(pair)
        for number, alone in enumerate(model().network(clip[None]) for clip in pair):
            torch.testing.assert_close(
                together.mask_logits()[number], alone.mask_logits()[0], atol=1e-3, rtol=1e-3
            )


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_training_gives_finite_gradients_everywhere(counts):
    fresh = tiny_video_model().train()
    batch = [drawn_clip(40, 50, tracks=count, seed=n) for n, count in enumerate(counts)]
    losses = fresh(batch)
    assert losses.keys() == KEYS
    sum(losses.values()).backward()
    missing = [name for name, p in fresh.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in fresh.parameters() if p.grad is not None)


def test_autocast_trains_and_predicts_in_float32():
    fresh = tiny_video_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = fresh([drawn_clip(40, 50)])
        predictions = fresh.network(torch.randn(1, 2, 3, 64, 64))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in fresh.parameters() if p.grad is not None)
    assert predictions.mask_logits().dtype == torch.float32


def test_bf16_predicts_nearly_the_same_scores():
    exact = tiny_video_model()([drawn_clip(40, 50)])
    rounded = tiny_video_model()
    set_precision(rounded, "bf16")
    found = rounded([drawn_clip(40, 50)])
    assert found["pred_scores"] != exact["pred_scores"]
    assert found["pred_scores"] == pytest.approx(exact["pred_scores"], rel=0.1)


def test_images_are_clips_of_one_frame():
    batch = [{**image_of(drawn_clip(40, 50, seed=n)), "seed": n} for n in (1, 2)]
    found, expected = model().losses(batch), image_model().losses(batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4, msg=key)
    one = {**drawn_clip(40, 50, seed=1, num_frames=1), "seed": 1}
    mixed = model().losses([{**image_of(one), "seed": 1}, one])
    twice = model().losses([one, one])
    assert all(torch.equal(mixed[key], twice[key]) for key in twice)


def test_images_have_the_results_of_the_model_for_images():
    batch = [image_of(drawn_clip(height, 50, seed=1)) for height in (40, 48)]
    for found, expected in zip(model()(batch), image_model()(batch), strict=True):
        ours, theirs = found["instances"], expected["instances"]
        assert len(ours) == len(theirs)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        predictions = model().network(model()._images(batch))
    assert isinstance(predictions, Predictions)
    assert predictions.mask_logits().shape == (2, 6, 16, 16)


def tracks_of(ids, classes, size=(8, 8)):
    """Return the targets of a clip with these ids and classes, (T, N)."""
    frames = [
        Instances(
            size,
            gt_classes=torch.tensor(row),
            gt_ids=torch.tensor(present),
            gt_masks=torch.tensor(present)[:, None, None].expand(-1, *size) >= 0,
        )
        for row, present in zip(classes, ids, strict=True)
    ]
    return {"image": [torch.zeros(3, *size)] * len(ids), "instances": frames, "video_id": 7}


def test_tracks_of_no_frame_are_dropped_and_others_have_the_class_of_a_frame_with_them():
    ids = [[0, -1, -1], [0, -1, 5]]
    for absent in (CLASSES, 0):  # the class that an absent track may have: "no object", or any
        found = clips.tracks(tracks_of(ids, [[1, absent, absent], [1, absent, 3]]), CLASSES)
        assert found.gt_classes.tolist() == [1, 3]
        assert found.gt_masks.flatten(2).any(-1).tolist() == [[True, True], [False, True]]
    ended = clips.tracks(tracks_of([[4], [-1]], [[2], [CLASSES]]), CLASSES)
    assert ended.gt_classes.tolist() == [2]


def invalid_training_batches():
    """Yield wrong batches, and what the message says."""
    clip = drawn_clip(8, 8)
    no_targets = {name: value for name, value in clip.items() if name != "instances"}
    yield [no_targets], r'video 0: training needs "instances" for each of the 3 frames'
    yield [{**clip, "instances": clip["instances"][:2]}], "for each of the 3 frames"
    yield [clip, drawn_clip(8, 8, num_frames=2)], r"must have the same number of frames, not \[2, 3\]"
    yield [{**clip, "image": [], "instances": []}], "video 0 has no frames"
    wide = [*clip["image"][:2], torch.zeros(3, 8, 9)]
    yield [{**clip, "image": wide}], r"0/2\.jpg: is \(3, 8, 9\), the first frame of its clip \(3, 8, 8\)"
    gray = [torch.zeros(1, 8, 8)] * 3
    yield [{**clip, "image": gray}], r"0/0\.jpg: an image must be \(3, h, w\)"
    tall = {**tracks_of([[0]], [[0]]), "image": [torch.zeros(3, 9, 8)]}
    yield [tall], r"frame 0 of video 7: masks are \(1, 8, 8\), but the image is \(3, 9, 8\)"
    one, two = (tracks_of([[0] * n], [[0] * n]) for n in (1, 2))
    joined = {**one, "image": one["image"] * 2, "instances": [*one["instances"], *two["instances"]]}
    yield [joined], r"video 7: its frames must have the same tracks, but have \[1, 2\]"
    yield [tracks_of([[0]], [[CLASSES]])], r"video 7: gt_classes: \[4\] is outside"


@pytest.mark.parametrize(("batch", "message"), list(invalid_training_batches()))
def test_invalid_training_clips_are_refused_by_name(batch, message):
    with pytest.raises(ValueError, match=message):
        tiny_video_model().train()(batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([drawn_clip(8, 8)] * 2, r"model\(clips\) predicts one clip, not 2; type model\.predict\(clips\)"),
        ([drawn_clip(8, 8), image_of(drawn_clip(8, 8))], "a batch holds clips or images, not both"),
        ([{"image": []}], "a clip of the batch has no frames"),
    ],
)
def test_invalid_clips_for_prediction_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        model()(batch)


def test_predict_takes_any_number_of_clips_of_any_length():
    batch = [drawn_clip(40, 50), drawn_clip(20, 33, num_frames=1, seed=1)]
    found = model().predict(batch)
    assert [len(result["pred_masks"][0]) for result in found] == [3, 1]
    assert found[1]["pred_scores"] == model()(batch[1:])["pred_scores"]


def test_another_layer_can_be_asked_for():
    first = tiny_video_model(MODEL__MASK_FORMER__TEST__LAYER=0)
    first.load_state_dict(model().state_dict())
    clip = drawn_clip(40, 50)
    assert first([clip])["pred_scores"] != model()([clip])["pred_scores"]
    with pytest.raises(ValueError, match=r"TEST\.LAYER is 3, but the model makes 3 predictions"):
        tiny_video_model(MODEL__MASK_FORMER__TEST__LAYER=3)([clip])
