"""A model for several tasks in prediction: each result is that of a model for its task alone."""

import numpy as np
import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from mask2former import Predictor
from mask2former.config import config_from_text, with_values
from mask2former.engine.setup.trained_model import stored_config
from mask2former.modeling.postprocessing.inference import TASKS
from mask2former.tiling.model import TiledModel, with_tiles
from mask2former.tools.flops import count_cost
from mask2former.web.session import Session
from mask2former.weights.load import read_checkpoint
from mask2former.weights.one_task import require_one_task

SWITCHES = {task: f"MODEL.MASK_FORMER.TEST.{task.upper()}_ON" for task in TASKS}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "joint.pth", tasks=TASKS)
    return read_checkpoint(str(path))


@pytest.fixture(scope="module")
def joint(checkpoint):
    return Predictor(stored_config(checkpoint), checkpoint=checkpoint, score_threshold=0.0)


@pytest.fixture(scope="module")
def alone(checkpoint):
    """By task a predictor of that task alone; all outputs are on, which some options depend on."""
    predictors = {}
    for task in TASKS:
        cfg, one = require_one_task(stored_config(checkpoint), checkpoint, task)
        cfg = with_values(cfg, dict.fromkeys(SWITCHES.values(), True), "the test")
        predictors[task] = Predictor(cfg, checkpoint=one, score_threshold=0.0)
    return predictors


def noise(height=60, width=90, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def in_tiles(predictor, image):
    cfg = with_tiles(predictor.cfg, 64, None)
    return predictor.result(image, TiledModel(cfg, predictor.model).predict_image(image))


@pytest.mark.parametrize("predict", [Predictor.__call__, in_tiles])
def test_each_result_is_that_of_a_model_for_its_task(joint, alone, predict):
    image = noise()
    result, expected = predict(joint, image), {task: predict(alone[task], image) for task in TASKS}
    assert np.array_equal(result.semantic, expected["semantic"].semantic)
    found, panoptic = result.panoptic, expected["panoptic"].panoptic
    assert np.array_equal(found.ids, panoptic.ids)
    assert [s["category_id"] for s in found.segments] == [s["category_id"] for s in panoptic.segments]
    found, instances = result.instances, expected["instance"].instances
    assert len(found) and torch.allclose(found.scores, instances.scores, atol=1e-4)
    assert torch.equal(found.pred_masks.dense(), instances.pred_masks.dense())
    others = expected["semantic"].instances, expected["panoptic"].instances
    assert not any(torch.equal(found.scores, other.scores) for other in others)


@pytest.mark.parametrize("tasks", [("instance",), ["semantic", "panoptic"]])
def test_only_the_results_asked_for_are_computed(checkpoint, joint, tasks, monkeypatch):
    predictor = Predictor(stored_config(checkpoint), checkpoint=checkpoint, score_threshold=0.0, tasks=tasks)
    decoded = []
    network = predictor.model.network
    monkeypatch.setattr(
        predictor.model, "network", lambda *args: decoded.append(network(*args)) or decoded[0]
    )
    image = noise()
    result, everything = predictor(image), joint(image)
    assert decoded[0].tasks == tuple(task for task in TASKS if task in tasks)
    if "instance" in tasks:
        assert result.semantic is None and result.panoptic is None
        found, expected = result.instances, everything.instances
        assert torch.allclose(found.scores, expected.scores, atol=1e-4)
    else:
        assert result.instances is None
        assert np.array_equal(result.semantic, everything.semantic)
        assert np.array_equal(result.panoptic.ids, everything.panoptic.ids)


@pytest.mark.parametrize("tasks", ["semantic", (), ("things",)])
def test_unknown_tasks_are_an_error(checkpoint, tasks):
    with pytest.raises(ValueError, match=r"^tasks is .*; it must be a list with some of semantic, instance"):
        Predictor(stored_config(checkpoint), checkpoint=checkpoint, tasks=tasks)


def test_an_image_that_repeats_has_the_same_tracks(joint):
    frame = noise()
    first, second = joint.track([frame, frame])
    assert first.track_ids == second.track_ids
    ids = first.track_ids["instance"]
    assert len(set(ids)) == len(ids) > 0
    assert np.array_equal(first.panoptic.ids, joint(frame).panoptic.ids)


def test_the_page_runs_the_network_once_for_all_views(joint, alone, monkeypatch):
    runs, network = [], joint.model.network
    monkeypatch.setattr(joint.model, "network", lambda *args: runs.append(1) or network(*args))
    low = joint.thresholds._replace(object_mask=0.1)
    session = Session(joint, noise(), "a.png", joint.thresholds)
    session.apply(low)
    assert len(runs) == 1
    expected = Session(alone["panoptic"], noise(), "a.png", low).segment_scores
    assert expected and session.segment_scores == pytest.approx(expected, abs=1e-4)


def test_a_task_that_is_off_is_not_decoded(checkpoint):
    cfg = stored_config(checkpoint)
    cost = {}
    for count in (1, 3):
        off = dict.fromkeys([SWITCHES[task] for task in TASKS[count:]], False)
        cost[count] = count_cost(with_values(cfg, off, "the test"), (640, 640)).flops
    plain = config_from_text(checkpoint.config, "joint.pth", ["SOLVER.TASKS", "()"])
    assert cost[1] == count_cost(plain, (640, 640)).flops
    for part in ("backbone", "pixel decoder"):
        assert cost[3][part] == cost[1][part]
    decoder = {count: flops["transformer decoder"].total() for count, flops in cost.items()}
    assert decoder[1] < decoder[3] < 3 * decoder[1]  # keys and values of the memory are computed once
