"""`Trainer(DefaultTrainer)`: a few steps on the shapes data, resumed and evaluated."""

import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import inference_on_dataset
from tiny_runs import EOMT, random_sample

import mask2former
from mask2former import SemanticSegmentorWithTTA  # as existing scripts import it
from mask2former.data import DatasetCatalog, build_train_loader
from mask2former.data.mapper import record_image, to_tensor
from mask2former.detectron2_host import Trainer
from mask2former.engine.evaluate import evaluate
from mask2former.engine.hooks.mask_annealing import MaskAnnealing
from mask2former.engine.train import build_trainer

WEIGHTS = "model_final.pth"


@pytest.fixture
def train(host_cfg, tmp_path):
    """Return a function that trains to a step, or continues a folder's run: `train("first", 3)`."""

    def run(folder, steps, **changes):
        (tmp_path / folder).mkdir(exist_ok=True)
        cfg = host_cfg(OUTPUT_DIR=str(tmp_path / folder), SOLVER__MAX_ITER=steps, **changes)
        torch.manual_seed(3)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        return trainer

    return run


def assert_equal(one, two, **tolerance):
    for (name, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(first, second, **{"rtol": 0, "atol": 0, **tolerance}, msg=name)


# The rate must not depend on the last step, or a run that is continued later would take other steps.
CONSTANT = {"SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER__STEPS": (), "TEST__EVAL_PERIOD": 0}
# In four steps, both blocks have masks in two; then the last alone, then none. So no mask is left to chance.
ANNEALED = {
    **EOMT,
    "MODEL__EOMT__ANNEALING_START": [0.25, 0.5],
    "MODEL__EOMT__ANNEALING_END": [0.5, 0.75],
    "SOLVER__CHECKPOINT_PERIOD": 1,
    **CONSTANT,
}


@pytest.mark.parametrize("changes", [CONSTANT, ANNEALED], ids=["Mask2Former", "EoMT"])
def test_steps_equal_those_of_the_standalone_host(train, our_cfg, changes):
    theirs = train("first", 4, **changes)
    cfg = our_cfg(SOLVER__MAX_ITER=4, **changes)
    torch.manual_seed(3)
    ours = build_trainer(cfg, mask2former.build_model(cfg))
    start = {name: value.clone() for name, value in ours.model.state_dict().items()}
    ours.train(build_train_loader(cfg), [MaskAnnealing(cfg)])
    assert any(not torch.equal(value, start[name]) for name, value in ours.model.state_dict().items())
    assert_equal(ours.model, theirs.model, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_ends_like_an_uninterrupted_one(train, host_cfg, tmp_path):
    whole = train("first", 4, **CONSTANT)
    train("second", 2, **CONSTANT)
    resumed = train("second", 4, **CONSTANT)
    assert resumed.start_iter == 2
    assert_equal(whole.model, resumed.model)
    read = Trainer.build_model(host_cfg())
    DetectionCheckpointer(read).load(str(tmp_path / "first" / WEIGHTS))
    assert_equal(whole.model, read)


def test_the_masks_of_eomt_are_removed_also_in_a_resumed_run(train, tmp_path):
    whole = train("first", 4, **ANNEALED)
    names = [f"model_{step:07}.pth" for step in range(3)] + [WEIGHTS]
    saved = [torch.load(tmp_path / "first" / name, weights_only=True)["model"] for name in names]
    probabilities = [weights["sem_seg_head.attn_mask_probs"].tolist() for weights in saved]
    assert probabilities == [[1, 1], [0, 1], [0, 0], [0, 0]]  # those of the next step
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "last_checkpoint").write_text(names[0])
    resumed = train("second", 4, **ANNEALED)
    assert resumed.start_iter == 1
    assert_equal(whole.model, resumed.model)


def test_a_resumed_run_keeps_its_random_seed(train):
    first = train("first", 1, SEED=-1, **CONSTANT)
    resumed = train("first", 2, SEED=-1, **CONSTANT)
    assert resumed.cfg.SEED == first.cfg.SEED >= 0
    assert train("first", 3, SEED=5, **CONSTANT).cfg.SEED == 5


def test_final_results_equal_those_of_the_standalone_host(train, our_cfg, tmp_path):
    found = train("first", 2)._last_eval_results
    model = mask2former.build_model(our_cfg())
    model.load_state_dict(torch.load(tmp_path / "first" / WEIGHTS, weights_only=True)["model"])
    expected = evaluate(our_cfg(), model, tmp_path / "ours")
    assert found.keys() == expected.keys() == {"sem_seg", "segm", "panoptic_seg"}
    for task, metrics in expected.items():
        assert found[task] == pytest.approx(metrics, abs=1e-4, nan_ok=True), task


def gradient_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


CLIPPED = pytest.approx(0.01, rel=1e-3)  # SOLVER.CLIP_GRADIENTS.CLIP_VALUE of the config


def test_gradients_are_clipped_before_the_step(train):
    assert gradient_norm(train("first", 1, **CONSTANT).model) == CLIPPED


def test_gradients_are_unscaled_before_they_are_clipped(host_cfg):
    cfg = host_cfg()
    gradients = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", 1024.0)):
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        optimizer = Trainer.build_optimizer(cfg, model)
        scaler.scale(sum(model([random_sample(1, 2)]).values())).backward()
        scaler.step(optimizer)
        assert gradient_norm(model) == CLIPPED
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER__ACCUMULATION_STEPS": 2}, "ACCUMULATION_STEPS is 2"),
        ({"SOLVER__STRATEGY": "fsdp"}, "STRATEGY is 'fsdp'"),
        ({"SOLVER__EMA_DECAY": 0.5}, "SOLVER.EMA_DECAY is 0.5"),
        ({"TEST__BEST_METRIC": "segm/AP"}, "TEST.BEST_METRIC is 'segm/AP'"),
        ({"LOGGERS": ["mlflow"]}, r"LOGGERS is \['mlflow'\]"),
        ({"SOLVER__EARLY_STOPPING": 2}, "SOLVER.EARLY_STOPPING is 2"),
        ({"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bf16"}, "needs a GPU"),
        ({"MODEL__META_ARCHITECTURE": "DETR"}, "MODEL.META_ARCHITECTURE DETR is not for --host detectron2"),
        ({"OUTPUT_DIR": "shelf://run"}, "OUTPUT_DIR is shelf://run: in Detectron2 it must be a local folder"),
    ],
)
def test_unsupported_keys_are_an_error(host_cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(host_cfg(**changes))


def test_epochs_set_the_number_of_steps(host_cfg, tmp_path, caplog):
    trainer = Trainer(host_cfg(SOLVER__EPOCHS=2.0, VIS_PERIOD=10, OUTPUT_DIR=str(tmp_path)))
    assert trainer.max_iter == 6  # two epochs of six images, two per step
    assert "VIS_PERIOD is 10" in caplog.text


SEMANTIC = {
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "TEST__AUG__MIN_SIZES": (64, 96),
    "TEST__AUG__ENABLED": True,
}


def test_augmented_results_equal_those_of_the_standalone_host(host_cfg, our_cfg, tmp_path):
    cfg, ours = host_cfg(OUTPUT_DIR=str(tmp_path), **SEMANTIC), our_cfg(**SEMANTIC)
    theirs, model = Trainer.build_model(cfg), mask2former.build_model(ours)
    model.load_state_dict(theirs.state_dict())
    expected = pytest.approx(evaluate(ours, model, tmp_path / "ours")["sem_seg"], abs=1e-4, nan_ok=True)
    assert Trainer.test(cfg, theirs)["sem_seg"] == expected
    # As the public script does: in Detectron2's loop, with images of one size, whose files are read again.
    plain = host_cfg(OUTPUT_DIR=str(tmp_path), **{**SEMANTIC, "TEST__AUG__ENABLED": False})
    name = "shapes_panoptic_val"
    loader, evaluator = Trainer.build_test_loader(plain, name), Trainer.build_evaluator(plain, name)
    results = inference_on_dataset(SemanticSegmentorWithTTA(cfg, theirs), loader, evaluator)
    assert results["sem_seg"] == expected


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_an_image_without_a_file_is_augmented_too(host_cfg, order):
    cfg = host_cfg(INPUT__FORMAT=order, **SEMANTIC)
    model = SemanticSegmentorWithTTA(cfg, Trainer.build_model(cfg).eval())
    record = DatasetCatalog.get("shapes_panoptic_val")[0]
    image = to_tensor(record_image(record), order)
    from_file, given = model([record, {"image": image.float()}])
    assert torch.equal(from_file["sem_seg"], given["sem_seg"])
    assert model([{"image": image, "height": 50, "width": 70}])[0]["sem_seg"].shape == (5, 50, 70)


def test_augmented_panoptic_results_are_an_error(host_cfg):
    cfg = host_cfg()
    with pytest.raises(ValueError, match="undefined for instance and panoptic"):
        SemanticSegmentorWithTTA(cfg, Trainer.build_model(cfg))


def test_weights_that_do_not_fit_are_an_error(host_cfg, tmp_path):
    torch.save({"model": {"something.else": torch.zeros(3)}}, tmp_path / "wrong.pth")
    trainer = Trainer(host_cfg(MODEL__WEIGHTS=str(tmp_path / "wrong.pth"), OUTPUT_DIR=str(tmp_path)))
    with pytest.raises(ValueError, match=r"wrong\.pth"):
        trainer.resume_or_load(resume=False)
