"""Epochs and reference batches as steps and pieces, and what contradicts itself."""

import itertools
import logging

import pytest
from tiny_runs import tiny_config

from mask2former.config import config_from_text
from mask2former.data import DatasetCatalog
from mask2former.data.loader import build_train_loader, expected_epoch_size
from mask2former.engine.build import build_model
from mask2former.engine.setup import schedule
from mask2former.engine.setup.schedule import apply_schedule
from mask2former.engine.train import build_trainer, train
from mask2former.engine.trainer import split

BATCH, PIECES, REFERENCE = "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS", "SOLVER.REFERENCE_BATCH"
EPOCHS, MAX_ITER, STEPS = "SOLVER.EPOCHS", "SOLVER.MAX_ITER", "SOLVER.STEPS"


def config(**solver):
    """Six images for training (see `tiny_shapes`)."""
    return tiny_config(**{f"SOLVER__{key}": value for key, value in solver.items()})


@pytest.mark.parametrize(
    ("epochs", "batch", "steps"),
    [(1, 2, 3), (1, 4, 2), (2.5, 2, 8), (0.5, 6, 1), (0.1, 2, 1), (10, 1, 60)],
)
def test_epochs_are_steps(tiny_shapes, epochs, batch, steps):
    cfg = config(EPOCHS=epochs, IMS_PER_BATCH=batch)
    apply_schedule(cfg)
    assert steps == cfg.SOLVER.MAX_ITER


def test_the_rate_falls_at_the_same_shares(tiny_shapes, caplog):
    cfg = config(EPOCHS=100, MAX_ITER=1000, STEPS=(500, 900), IMS_PER_BATCH=2)
    with caplog.at_level(logging.INFO, "mask2former"):
        apply_schedule(cfg, {EPOCHS})
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (300, (150, 270))
    assert "100 epochs of 6 images, 2 a step: SOLVER.MAX_ITER is 300" in caplog.text
    saved = config_from_text(cfg.dump(), "saved")
    apply_schedule(saved)
    assert saved == cfg


def test_epochs_count_what_is_trained_on(tiny_shapes, monkeypatch):
    crowd = {"category_id": 0, "iscrowd": 1}
    records = [{"annotations": [{"category_id": label}]} for label in [0] * 9 + [1]]
    records.append({"annotations": [crowd]})
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: records)
    assert expected_epoch_size(tiny_config()) == 10
    cfg = tiny_config(
        DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler", DATALOADER__REPEAT_THRESHOLD=0.4
    )
    assert expected_epoch_size(cfg) == pytest.approx(9 + 2)  # class 1 on a tenth: the square root of 4


def test_typed_steps_go_before_epochs_of_a_file(tiny_shapes):
    cfg = config(EPOCHS=5, MAX_ITER=7, STEPS=(3,))
    apply_schedule(cfg, {MAX_ITER})
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.EPOCHS, cfg.SOLVER.STEPS) == (7, 0, (3,))
    cfg = config(EPOCHS=5, MAX_ITER=100, STEPS=(3,))
    apply_schedule(cfg, {STEPS})
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (15, (3,))


@pytest.mark.parametrize("keys", [(MAX_ITER,), (STEPS,), (MAX_ITER, STEPS)])
def test_typed_epochs_and_steps_contradict_each_other(keys):
    with pytest.raises(ValueError, match=rf"SOLVER\.EPOCHS and {' and '.join(keys)} were given"):
        apply_schedule(config(EPOCHS=5), {EPOCHS, *keys})


def test_no_epochs_leave_everything_and_read_nothing(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    cfg = config(STEPS=(2,))
    before = cfg.clone()
    apply_schedule(cfg, {MAX_ITER, STEPS})
    assert cfg == before
    with pytest.raises(ValueError, match=r"SOLVER\.EPOCHS is -1\.0; it must not be negative"):
        apply_schedule(config(EPOCHS=-1))


@pytest.mark.parametrize(("at_once", "pieces"), [(1, 4), (2, 2), (4, 1)])
def test_a_reference_batch_is_the_same_images_in_other_pieces(tiny_shapes, at_once, pieces):
    cfg = config(REFERENCE_BATCH=4, IMS_PER_BATCH=at_once)
    whole = config(IMS_PER_BATCH=4)
    apply_schedule(cfg)
    assert (4, pieces) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS)
    trainer = build_trainer(cfg, build_model(cfg))
    pairs = zip(build_train_loader(cfg), build_train_loader(whole), strict=True)  # without end
    for found, expected in itertools.islice(pairs, 3):
        assert [sample["seed"] for sample in found] == [sample["seed"] for sample in expected]
        shown = list(split(found, trainer.accumulation))
        assert [len(piece) for piece in shown] == [at_once] * pieces
        assert [sample["image_id"] for sample in itertools.chain(*shown)] == [s["image_id"] for s in expected]
    saved = config_from_text(cfg.dump(), "saved")
    apply_schedule(saved)
    assert saved == cfg


def test_epochs_are_counted_in_reference_batches(tiny_shapes):
    cfg = config(REFERENCE_BATCH=6, IMS_PER_BATCH=2, EPOCHS=4)
    apply_schedule(cfg, {EPOCHS, BATCH})
    assert cfg.SOLVER.MAX_ITER == 4


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_a_batch_that_is_large_enough_stays(reference):
    cfg = config(REFERENCE_BATCH=reference, IMS_PER_BATCH=2, ACCUMULATION_STEPS=2)
    before = cfg.clone()
    apply_schedule(cfg, {PIECES})
    assert cfg == before


@pytest.mark.parametrize(
    ("reference", "at_once", "processes", "message"),
    [
        (16, 6, 1, r"REFERENCE_BATCH 16 cannot be made up of 6 images.*IMS_PER_BATCH can be 4 or 8"),
        (16, 3, 2, r"3 images at once on 2 processes.*can be 2 or 4"),
        (16, 1, 4, r"can be 4 or 8"),
        (7, 3, 2, r"REFERENCE_BATCH is 7: 2 processes cannot share that evenly"),
        (-4, 3, 1, r"REFERENCE_BATCH is -4 and SOLVER\.IMS_PER_BATCH 3: no numbers of images"),
        (4, 0, 1, r"SOLVER\.IMS_PER_BATCH 0: no numbers"),
    ],
)
def test_batches_that_cannot_be_made_up(monkeypatch, reference, at_once, processes, message):
    monkeypatch.setattr(schedule, "world_size", lambda: processes)
    with pytest.raises(ValueError, match=message):
        apply_schedule(config(REFERENCE_BATCH=reference, IMS_PER_BATCH=at_once))


def test_typed_pieces_that_do_not_make_up_the_reference():
    cfg = config(REFERENCE_BATCH=8, IMS_PER_BATCH=2, ACCUMULATION_STEPS=2)
    with pytest.raises(ValueError, match=r"ACCUMULATION_STEPS was given as 2, but SOLVER\.REFERENCE_BATCH 8"):
        apply_schedule(cfg, {PIECES})
    apply_schedule(cfg)  # a config file's value yields
    assert cfg.SOLVER.ACCUMULATION_STEPS == 4


def test_a_run_follows_both(tiny_shapes, tmp_path):
    cfg = config(REFERENCE_BATCH=4, IMS_PER_BATCH=1, EPOCHS=1)
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ()
    train(cfg, resume=False)
    written = config_from_text((tmp_path / "config.yaml").read_text(), "written")
    assert (written.SOLVER.MAX_ITER, written.SOLVER.ACCUMULATION_STEPS) == (2, 4)
