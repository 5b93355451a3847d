"""Training on images with more objects than queries, and the warnings about them."""

from types import SimpleNamespace

import pytest
import torch
from tiny_clips import drawn_clip
from tiny_runs import random_sample, tiny_config, train_resolved

from mask2former.engine.build import build_model
from mask2former.engine.hooks import query_overflow
from mask2former.engine.hooks.query_overflow import QueryOverflowHook


def run(hook, *counts):
    """Run steps of one image each with these numbers of objects."""
    for number, objects in enumerate(counts):
        sample = random_sample(number, objects)
        hook.after_step(SimpleNamespace(last=SimpleNamespace(batch=[sample])))
    hook.after_train(SimpleNamespace())


def test_the_first_image_with_too_many_objects_is_named_and_all_are_counted(caplog):
    run(QueryOverflowHook(3), 0, 3, 2)
    assert not caplog.records
    run(QueryOverflowHook(3), 2, 3, 5, 0, 9, 4)
    first, last = (record.getMessage() for record in caplog.records)
    assert "2.jpg has 5 objects, but the model has 3 queries: each step leaves out 2 objects" in first
    assert "3 of 6 training samples" in last and "at most 9" in last
    assert all("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES" in text for text in (first, last))


def test_only_classes_that_share_the_queries_count(caplog):
    sample = random_sample(0, 5)
    sample["instances"].gt_classes = torch.tensor([0, 0, 1, 2, 0])
    for allowed, class_ids in ((3, [0]), (2, [1, 2])):
        hook = QueryOverflowHook(allowed, class_ids)
        hook.after_step(SimpleNamespace(last=SimpleNamespace(batch=[sample])))
        assert (hook.overfull, hook.most) == (0, allowed)
    assert not caplog.records
    hook = QueryOverflowHook(2, [0])
    hook.after_step(SimpleNamespace(last=SimpleNamespace(batch=[sample])))
    assert "has 3 objects, but the model has 2 queries" in caplog.text


def test_the_tracks_of_a_clip_count(caplog):
    for allowed in (4, 3):
        hook = QueryOverflowHook(allowed)
        hook.after_step(SimpleNamespace(last=SimpleNamespace(batch=[drawn_clip(8, 8, tracks=4, seed=7)])))
        assert (hook.overfull, hook.most) == (4 - allowed, 4)
    assert "7/0.jpg has 4 objects, but the model has 3 queries" in caplog.text


def test_only_rank_0_warns(caplog, monkeypatch):
    monkeypatch.setattr(query_overflow, "is_main_process", lambda: False)
    monkeypatch.setattr(query_overflow, "gather_objects", lambda item: [])  # as on other ranks
    run(QueryOverflowHook(3), 5, 6)
    assert not caplog.records
    monkeypatch.setattr(query_overflow, "gather_objects", lambda item: [item, (10, 4, 20)])  # of two ranks
    run(QueryOverflowHook(3), 2, 5)
    assert "5 of 12 training samples had more objects than the 3 queries, at most 20" in caplog.text


@pytest.mark.parametrize("objects", [7, 40])
def test_losses_are_finite_with_more_objects_than_queries(objects):
    model = build_model(tiny_config())  # six queries
    losses = model([random_sample(1, objects), random_sample(2, 2)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


def test_a_run_warns(tiny_shapes, tmp_path, caplog):
    cfg = tiny_config(OUTPUT_DIR=tmp_path, MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=2, SOLVER__MAX_ITER=2)
    cfg.DATASETS.TEST = ()
    train_resolved(cfg)
    assert "4 of 4 training samples had more objects than the 2 queries" in caplog.text
