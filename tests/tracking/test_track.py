"""`Predictor.track`: results of frames with ids, against the predictor itself and films of known objects."""

import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from mask2former.engine.setup.trained_model import stored_config
from mask2former.modeling.predictions import ImagePrediction, Sizes
from mask2former.predictor import Predictor
from mask2former.result import Result
from mask2former.structures import Instances, equal
from mask2former.tracking.results import _coarse_masks, track_result
from mask2former.tracking.tracker import Tracker
from mask2former.utils.image_io import ImageError
from mask2former.weights.load import read_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "model_final.pth")


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(checkpoint)


def noise(seed=0, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def without_tracks(result):
    """Return masks, scores and maps, which tracking leaves as they are."""
    instances = result.instances
    maps = [instances.pred_masks, instances.scores, result.semantic, result.panoptic.ids]
    return [*maps, [(segment["id"], segment["isthing"]) for segment in result.panoptic.segments]]


def test_results_are_those_of_single_frames_with_ids(predictor):
    frames = [noise(seed) for seed in (0, 0, 1)]
    found = list(predictor.track(frames))
    for frame, result in zip(frames, found, strict=True):
        alone = predictor(frame)
        assert alone.track_ids == {}
        one_a_query = {
            query: i for i, query in reversed(list(enumerate(alone.instances.pred_queries.tolist())))
        }
        alone = replace(alone, instances=alone.instances[sorted(one_a_query.values())])
        assert all(equal(a, b) for a, b in zip(without_tracks(result), without_tracks(alone), strict=True))
        assert not result.instances.has("pred_queries")
        ids = result.track_ids["instance"]
        assert len(ids) == len(set(ids)) == len(result.instances) > 0
        for segment, number in zip(result.panoptic.segments, result.track_ids["panoptic"], strict=True):
            assert (number is not None) == segment["isthing"] == ("score" in segment)
    assert found[0].track_ids == found[1].track_ids  # the same image twice
    assert found[0] == found[1]


def test_frames_are_read_one_by_one_from_anything_that_is_an_image(predictor, tmp_path):
    read = []

    def frames():
        for seed in itertools.count():
            read.append(seed)
            yield torch.from_numpy(noise(seed)).movedim(2, 0)

    results = predictor.track(frames(), channels="BGR")
    first = next(results)
    assert read == [0]
    np.testing.assert_array_equal(first.image, noise(0)[..., ::-1])
    with pytest.raises(ImageError, match=r"gone\.png"):
        next(predictor.track([tmp_path / "gone.png"]))


def test_frames_and_results_are_not_kept(predictor, monkeypatch):
    kept, masks = [], []
    update = Tracker.update

    def count(tracker, objects):
        masks.append(weakref.ref(objects.masks))
        return update(tracker, objects)

    monkeypatch.setattr(Tracker, "update", count)
    for result in predictor.track((noise(seed % 3, 16, 16) for seed in range(15)), max_absent=3):
        kept.append(weakref.ref(result.image))
        assert sum(image() is not None for image in kept) <= 2
        del result
    assert len(kept) == 15
    assert sum(mask() is not None for mask in masks) <= 6


def test_a_semantic_model_gives_frames_without_ids(checkpoint):
    cfg = stored_config(read_checkpoint(checkpoint))
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    predictor = Predictor(cfg)
    (result,) = predictor.track([noise()])
    assert result.track_ids == {} and result == predictor(noise())


@pytest.mark.parametrize("task", ["INSTANCE", "PANOPTIC"])
def test_one_task_is_enough(checkpoint, task):
    cfg = stored_config(read_checkpoint(checkpoint))
    for other in ("INSTANCE", "PANOPTIC", "SEMANTIC"):
        cfg.MODEL.MASK_FORMER.TEST[f"{other}_ON"] = other == task
    first, second = Predictor(cfg).track([noise(), noise()])
    assert first.track_ids.keys() == {task.lower()}
    assert first.track_ids == second.track_ids


def test_a_model_without_embeddings_is_an_error(predictor, monkeypatch):
    found = predictor.model.predict_images
    bare = lambda inputs: [image._replace(embeddings=None) for image in found(inputs)]  # noqa: E731
    monkeypatch.setattr(predictor.model, "predict_images", bare)
    with pytest.raises(ValueError, match="which this model does not tell; an exported file lacks them: open"):
        next(predictor.track([noise()]))


def test_tiles_and_a_negative_limit_are_errors_at_once(checkpoint, predictor):
    with pytest.raises(ValueError, match="tiles do not share theirs; leave out the tiles"):
        Predictor(checkpoint, tile=64).track([])
    with pytest.raises(ValueError, match="max_absent is -1"):
        predictor.track([], max_absent=-1)


def test_a_segment_shares_the_track_of_the_instance_that_it_is(predictor):
    """Two queries find one object: the instance is of one of them, the panoptic segment of the other."""
    result = predictor(noise())
    assert result.panoptic is not None
    logits = torch.full((4, 8, 8), -9.0)
    logits[:2, :4, :4], logits[2, 5:, 5:], logits[3, 5:, :3] = 9.0, 9.0, 9.0
    size = Sizes((32, 32), (32, 32), (48, 64))
    probabilities = torch.full((4, 5), 0.2)
    prediction = ImagePrediction(probabilities, logits, size, embeddings=torch.randn(4, 8))
    instances = Instances.cat([result.instances[:1]] * 2)
    instances.pred_queries = torch.tensor([0, 2])
    segments = [{"id": i, "isthing": i < 4, "category_id": 0 if i < 4 else 3} for i in (1, 2, 3, 4)]
    result = replace(result, instances=instances, panoptic=result.panoptic._replace(segments=segments))
    found = track_result(Tracker(), result, prediction, [1, 2, 3, 0], [0, 1])
    assert found.track_ids == {"instance": [1, 2], "panoptic": [1, 2, 3, None]}


def test_masks_are_compared_on_a_coarse_grid_that_keeps_small_objects():
    logits = torch.full((2, 300, 200), -1.0)
    logits[0, 299, 199] = 1.0
    logits[1, 10:40, 20:50] = 1.0
    masks = _coarse_masks(logits)
    assert masks.shape == (2, 100, 67)
    assert masks[0].nonzero().tolist() == [[99, 66]]
    assert masks[1].sum() == 11 * 11 and masks[1, 3:14, 6:17].all()
    assert torch.equal(_coarse_masks(logits[:, :128, :128]), logits[:, :128, :128] > 0)
    assert _coarse_masks(logits[:0]).shape == (0, 100, 67)


def test_labels_and_shades_follow_the_tracks(predictor):
    (result,) = predictor.track([noise()])
    for task, ids in result.track_ids.items():
        regions, given = result.regions(task), result.regions(task, ids)
        assert [region[1:] for region in regions] == [region[1:] for region in given]
        np.testing.assert_array_equal(result.draw(task), result.draw(task, ids=ids))
    assert isinstance(result, Result)
