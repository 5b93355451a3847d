"""`Trainer(DefaultTrainer)`: some steps on the shapes data, resumed, evaluated."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import inference_on_dataset
from tiny_runs import random_sample

import mask2former
from mask2former.data import DatasetCatalog, build_train_loader
from mask2former.data.mapper import record_image, to_tensor
from mask2former.detectron2_host import SemanticSegmentorWithTTA, Trainer
from mask2former.engine.evaluate import evaluate
from mask2former.engine.train import build_trainer

WEIGHTS = "model_final.pth"


@pytest.fixture
def train(host_cfg, tmp_path):
    """`train(folder, steps)`: a run of so many steps, continued where the folder holds one."""

    def run(folder, steps, **changes):
        cfg = host_cfg(OUTPUT_DIR=str(tmp_path / folder), SOLVER__MAX_ITER=steps, **changes)
        torch.manual_seed(3)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer

    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    return run


# The rate must not depend on the last step, or a run that is to be continued would take other steps.
CONSTANT = {"SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER__STEPS": (), "TEST__EVAL_PERIOD": 0}


def test_steps_are_those_of_the_standalone_host(train, our_cfg):
    theirs = train("first", 3, **CONSTANT)
    cfg = our_cfg(SOLVER__MAX_ITER=3, **CONSTANT)
    torch.manual_seed(3)
    ours = build_trainer(cfg, mask2former.build_model(cfg))
    start = {name: value.clone() for name, value in ours.model.state_dict().items()}
    ours.train(build_train_loader(cfg))
    assert any(not torch.equal(value, start[name]) for name, value in ours.model.state_dict().items())
    for (name, one), two in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7, msg=name)


def test_a_resumed_run_ends_like_the_unbroken_one(train, tmp_path):
    whole = train("first", 4, **CONSTANT)
    train("second", 2, **CONSTANT)
    resumed = train("second", 4, **CONSTANT)
    assert resumed.start_iter == 2
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_drawn_seed_is_kept(train):
    first = train("first", 1, SEED=-1, **CONSTANT)
    resumed = train("first", 2, SEED=-1, **CONSTANT)
    assert resumed.cfg.SEED == first.cfg.SEED >= 0
    assert train("first", 3, SEED=5, **CONSTANT).cfg.SEED == 5


def test_evaluation_at_the_end_is_the_standalone_hosts(train, our_cfg, tmp_path):
    trainer = train("first", 2)
    model = mask2former.build_model(our_cfg())
    model.load_state_dict(torch.load(tmp_path / "first" / WEIGHTS, weights_only=True)["model"])
    expected = evaluate(our_cfg(), model, tmp_path / "ours")
    found = trainer._last_eval_results
    assert found.keys() == expected.keys() == {"sem_seg", "segm", "panoptic_seg"}
    for task, metrics in expected.items():
        assert found[task] == pytest.approx(metrics, abs=1e-4, nan_ok=True), task


def test_the_gradient_is_clipped_before_the_step(train):
    trainer = train("first", 1, **CONSTANT)
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)  # SOLVER.CLIP_GRADIENTS.CLIP_VALUE of the config


def test_gradients_are_unscaled_before_they_are_clipped(host_cfg):
    cfg = host_cfg()
    stepped = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", 1024.0)):
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        optimizer = Trainer.build_optimizer(cfg, model)
        scaler.scale(sum(model([random_sample(1, 2)]).values())).backward()
        scaler.step(optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert torch.stack([g.norm() for g in gradients]).norm().item() == pytest.approx(0.01, rel=1e-3)
        stepped.append(torch.cat([g.flatten() for g in gradients]))
    torch.testing.assert_close(*stepped, rtol=1e-4, atol=1e-8)


def test_what_detectron2s_loop_cannot_do_is_said(host_cfg):
    with pytest.raises(ValueError, match="ACCUMULATION_STEPS is 2"):
        Trainer(host_cfg(SOLVER__ACCUMULATION_STEPS=2))
    with pytest.raises(ValueError, match="STRATEGY is 'fsdp'"):
        Trainer(host_cfg(SOLVER__STRATEGY="fsdp"))
    with pytest.raises(ValueError, match="needs a GPU"):
        Trainer(host_cfg(SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="bf16"))
    with pytest.raises(ValueError, match="OUTPUT_DIR is shelf://run: in Detectron2 it must be a folder"):
        Trainer(host_cfg(OUTPUT_DIR="shelf://run"))


def test_epochs_decide_the_steps_in_a_script_too(host_cfg, tmp_path, caplog):
    trainer = Trainer(host_cfg(SOLVER__EPOCHS=2.0, VIS_PERIOD=10, OUTPUT_DIR=str(tmp_path)))
    assert trainer.max_iter == 6  # two epochs of six images, two a step
    assert "VIS_PERIOD is 10" in caplog.text


SEMANTIC = {
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "TEST__AUG__MIN_SIZES": (64, 96),
    "TEST__AUG__ENABLED": True,
}


def test_augmented_evaluation_is_the_standalone_hosts(host_cfg, our_cfg, tmp_path):
    cfg, ours = host_cfg(OUTPUT_DIR=str(tmp_path), **SEMANTIC), our_cfg(**SEMANTIC)
    theirs, model = Trainer.build_model(cfg), mask2former.build_model(ours)
    model.load_state_dict(theirs.state_dict())
    expected = evaluate(ours, model, tmp_path / "ours")["sem_seg"]
    assert Trainer.test(cfg, theirs)["sem_seg"] == pytest.approx(expected, abs=1e-4, nan_ok=True)
    # As the public script does it: Detectron2's own loop, with images of one size that are read anew.
    plain = host_cfg(OUTPUT_DIR=str(tmp_path), **{**SEMANTIC, "TEST__AUG__ENABLED": False})
    name = "shapes_panoptic_val"
    loader = Trainer.build_test_loader(plain, name)
    results = inference_on_dataset(
        SemanticSegmentorWithTTA(cfg, theirs), loader, Trainer.build_evaluator(plain, name)
    )
    assert results["sem_seg"] == pytest.approx(expected, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_an_image_without_a_file_is_augmented_too(host_cfg, order):
    cfg = host_cfg(INPUT__FORMAT=order, **SEMANTIC)
    model = SemanticSegmentorWithTTA(cfg, Trainer.build_model(cfg).eval())
    record = DatasetCatalog.get("shapes_panoptic_val")[0]
    image = to_tensor(record_image(record), order)
    from_file, given = model([record, {"image": image.float()}])
    assert torch.equal(from_file["sem_seg"], given["sem_seg"])
    assert model([{"image": image, "height": 50, "width": 70}])[0]["sem_seg"].shape == (5, 50, 70)


def test_averaging_over_views_of_panoptic_results_is_refused(host_cfg):
    cfg = host_cfg()
    with pytest.raises(ValueError, match="undefined for instance and panoptic"):
        SemanticSegmentorWithTTA(cfg, Trainer.build_model(cfg))


def test_weights_that_do_not_fit_are_an_error_in_this_host_too(host_cfg, tmp_path):
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "wrong.pth")
    trainer = Trainer(host_cfg(MODEL__WEIGHTS=str(tmp_path / "wrong.pth"), OUTPUT_DIR=str(tmp_path)))
    with pytest.raises(ValueError, match=r"wrong\.pth"):
        trainer.resume_or_load(resume=False)


def test_its_checkpoint_is_read_by_the_checkpointer(train, host_cfg, tmp_path):
    trainer = train("first", 1, **CONSTANT)
    model = Trainer.build_model(host_cfg())
    DetectionCheckpointer(model).load(str(tmp_path / "first" / WEIGHTS))
    for one, two in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)
