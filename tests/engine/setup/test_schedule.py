"""The length of a run in epochs, and the micro-batches of a step."""

import itertools
import logging

import pytest
from tiny_runs import tiny_file

from mask2former.config import config_from_text
from mask2former.data import DatasetCatalog
from mask2former.data.loader import accumulation_steps, build_train_loader, expected_epoch_size
from mask2former.engine.build import build_model
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.train import build_trainer
from mask2former.engine.trainer import split

EPOCHS, MAX_ITER, STEPS = "SOLVER.EPOCHS", "SOLVER.MAX_ITER", "SOLVER.STEPS"


def config(*typed, **solver):
    """A config with six training images (see `tiny_shapes`)."""
    return tiny_file(*typed, **{f"SOLVER__{key}": value for key, value in solver.items()})


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"), [(1, 2, 3), (1, 4, 2), (2.5, 2, 8), (0.5, 6, 1), (0.1, 2, 1), (10, 1, 60)]
)
def test_epochs_set_the_number_of_steps(tiny_shapes, epochs, batch, steps):
    assert steps == resolve_config(config(EPOCHS=epochs, IMS_PER_BATCH=batch)).SOLVER.MAX_ITER


def test_the_rate_falls_at_the_same_fractions_of_the_run(tiny_shapes, caplog):
    cfg = config(EPOCHS, 100, MAX_ITER=1000, STEPS=(500, 900), IMS_PER_BATCH=2)
    with caplog.at_level(logging.INFO, "mask2former"):
        cfg = resolve_config(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (300, (150, 270))
    assert (cfg.source(MAX_ITER), cfg.source(EPOCHS)) == (EPOCHS, "command line")
    assert "100 epochs of 6 images, 2 a step: SOLVER.MAX_ITER is 300" in caplog.text
    assert resolve_config(config_from_text(cfg.dump(), "saved")) == cfg


def test_epochs_count_the_images_that_are_trained_on(tiny_shapes, monkeypatch):
    crowd = {"category_id": 0, "iscrowd": 1}
    records = [{"annotations": [{"category_id": label}]} for label in [0] * 9 + [1]]
    records.append({"annotations": [crowd]})
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: records)
    assert expected_epoch_size(tiny_file()) == 10
    cfg = tiny_file(DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler", DATALOADER__REPEAT_THRESHOLD=0.4)
    assert expected_epoch_size(cfg) == pytest.approx(9 + 2)  # class 1 on a tenth: the square root of 4


def test_typed_steps_win_over_epochs_of_a_file(tiny_shapes, caplog):
    with caplog.at_level(logging.INFO, "mask2former"):
        cfg = resolve_config(config(MAX_ITER, 7, EPOCHS=5, STEPS=(3,)))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS, cfg.SOLVER.STEPS) == (7, 0, (3,))
    assert "SOLVER.EPOCHS: 0.0, as the given SOLVER.MAX_ITER says, instead of 5.0" in caplog.messages
    assert cfg.source(EPOCHS) == "the given SOLVER.MAX_ITER"
    cfg = resolve_config(config(STEPS, (3,), EPOCHS=5, MAX_ITER=100))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (15, (3,))


@pytest.mark.parametrize("keys", [(MAX_ITER,), (STEPS,), (MAX_ITER, STEPS)])
def test_typed_epochs_and_steps_contradict_each_other(tiny_shapes, keys):
    values = {MAX_ITER: 9, STEPS: (3,)}
    typed = [part for key in keys for part in (key, values[key])]
    with pytest.raises(ValueError, match=rf"SOLVER\.EPOCHS and {' and '.join(keys)} were given"):
        resolve_config(config(EPOCHS, 5, *typed))


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"EPOCHS": -1}, r"SOLVER\.EPOCHS is -1\.0; it must not be negative"),
        ({"EPOCHS": 1, "IMS_PER_BATCH": 0}, r"SOLVER\.IMS_PER_BATCH is 0; it must be at least 1"),
    ],
)
def test_impossible_schedules_are_refused(tiny_shapes, solver, message):
    with pytest.raises(ValueError, match=message):
        resolve_config(config(**solver))


@pytest.mark.parametrize(
    ("images", "processes", "steps"),
    [(16, 1, 8), (16, 2, 4), (16, 8, 1), (16, 16, 1), (6, 1, 3), (5, 1, 5), (9, 3, 3), (1, 1, 1)],
)
def test_auto_accumulation_shows_a_process_two_images_at_once(images, processes, steps):
    cfg = config(IMS_PER_BATCH=images, ACCUMULATION_STEPS="auto")
    assert accumulation_steps(cfg.SOLVER, processes) == steps


def test_auto_accumulation_is_resolved_to_a_number_and_logged(tiny_shapes, caplog):
    with caplog.at_level(logging.INFO, "mask2former"):
        cfg = resolve_config(config("SOLVER.ACCUMULATION_STEPS", "auto", IMS_PER_BATCH=6))
    assert cfg.SOLVER.ACCUMULATION_STEPS == 3
    assert "SOLVER.ACCUMULATION_STEPS: 3, for 6 images a step on 1 processes, instead of auto" in caplog.text


@pytest.mark.parametrize(("steps", "at_once"), [(1, 4), (2, 2), (4, 1), ("auto", 2)])
def test_micro_batches_are_the_same_images_in_other_parts(tiny_shapes, steps, at_once):
    cfg = resolve_config(config(IMS_PER_BATCH=4, ACCUMULATION_STEPS=steps))
    trainer = build_trainer(cfg, build_model(cfg))
    loaders = map(build_train_loader, (cfg, config(IMS_PER_BATCH=4)))
    for found, expected in itertools.islice(zip(*loaders, strict=True), 3):  # they have no end
        assert [sample["seed"] for sample in found] == [sample["seed"] for sample in expected]
        parts = list(split(found, trainer.accumulation))
        assert {len(part) for part in parts} == {at_once}
        assert [sample["image_id"] for sample in itertools.chain(*parts)] == [s["image_id"] for s in expected]
