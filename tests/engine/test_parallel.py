"""Several processes train as one does, with replicated or sharded weights."""

import functools
import math

import pytest
import torch
from process_groups import Job, run_in_worlds
from tiny_runs import EOMT, SMALL_VIT, random_sample, tiny_config

from mask2former.data.loader import share_of_step
from mask2former.engine.build import build_model
from mask2former.engine.train import build_trainer
from mask2former.engine.trainer import Hook
from mask2former.utils.comm import rank, world_size
from mask2former.utils.sharding import gather_to_main, is_sharded

MIXED = (5, 1, 0, 2)  # objects in each image of a step
OBJECTS = {"one process always empty": (3, 2, 0, 0), "all empty": (0, 0, 0, 0)}
STEPS, MANY_STEPS = 3, 20
SWIN = {
    "MODEL__BACKBONE__NAME": "D2SwinTransformer",
    "MODEL__SWIN__EMBED_DIM": 16,
    "MODEL__SWIN__DEPTHS": "[1,1,1,1]",
    "MODEL__SWIN__NUM_HEADS": "[1,2,2,4]",
    "MODEL__SWIN__WINDOW_SIZE": 4,
    "MODEL__SWIN__DROP_PATH_RATE": 0.0,
    "MODEL__ACTIVATION_CHECKPOINTING": True,
}
VIT = {
    **SMALL_VIT,
    "MODEL__BACKBONE__NAME": "ViTSimplePyramid",
    "MODEL__VIT__DEPTH": 2,
    "MODEL__ACTIVATION_CHECKPOINTING": True,
    "SOLVER__LAYER_DECAY": 0.9,
}
RECOMPUTED_EOMT = {
    **EOMT,
    "MODEL__ACTIVATION_CHECKPOINTING": True,
    "SOLVER__LAYER_DECAY": 0.9,
    "SOLVER__OPTIMIZER": "SGD",
}
ADAPTER = {
    **SMALL_VIT,
    "MODEL__BACKBONE__NAME": "ViTAdapter",
    "MODEL__VIT__DEPTH": 4,
    "MODEL__VIT_ADAPTER__NUM_HEADS": 2,
    "MODEL__ACTIVATION_CHECKPOINTING": True,
    "SOLVER__OPTIMIZER": "SGD",
}
CLIP = {"SOLVER__OPTIMIZER": "SGD", "SOLVER__CLIP_GRADIENTS__ENABLED": True}
RECIPES = {
    "clipped whole": {**CLIP, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model"},
    "clipped one by one": {**CLIP, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "norm"},
    "AdamW, Swin, recomputed": SWIN,
    "AdamW, ViT, recomputed": VIT,
    "EoMT, recomputed": RECOMPUTED_EOMT,
    "ViT-Adapter, recomputed": ADAPTER,
    "SyncBN": {"MODEL__RESNETS__NORM": "SyncBN", "SOLVER__OPTIMIZER": "SGD"},
    "bf16": {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bf16", "SOLVER__OPTIMIZER": "SGD"},
    "fp16": {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "fp16", "SOLVER__OPTIMIZER": "SGD"},
    **{name: {"SOLVER__OPTIMIZER": "SGD"} for name in ("poisoned", *OBJECTS)},
}
BASE = "clipped whole"
RECIPES["accumulated"] = {**RECIPES[BASE], "SOLVER__ACCUMULATION_STEPS": 2}
ROUNDED = ("bf16", "fp16")  # the order of sums shows


class Recorder(Hook):
    def __init__(self):
        self.steps = []

    def after_step(self, trainer):
        last = trainer.last
        self.steps.append({**last.losses, "norm": last.grad_norm, "skipped": float(last.skipped)})


def images(step, numbers, name):
    """Return the images `numbers` of a step; for "poisoned", the last image of step 1 is not finite."""
    objects = OBJECTS.get(name, MIXED)
    found = [random_sample(10 * step + number, objects[number]) for number in numbers]
    for number, image in zip(numbers, found, strict=True):
        if (name, step, number) == ("poisoned", 1, 3):
            image["image"] = torch.full_like(image["image"], math.nan, dtype=torch.float32)
    return found


def train_share(name, **changes):
    """Return the record of each step and the final weights; each process trains on its share."""
    count = MANY_STEPS if name == "one process always empty" else STEPS
    options = {"SOLVER__BASE_LR": 0.001, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": count}
    cfg = tiny_config(**options, **RECIPES[name], **changes)
    torch.manual_seed(rank())  # different initial weights, which the engine must synchronize,
    model = build_model(cfg)
    with torch.no_grad():
        for buffer in model.buffers():  # and different batch-norm statistics
            buffer += rank()
    trainer = build_trainer(cfg, model)
    assert is_sharded(trainer.model) == (cfg.SOLVER.STRATEGY == "fsdp" and world_size() > 1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=trainer.scaler.is_enabled())
    recorder = Recorder()
    pieces = cfg.SOLVER.ACCUMULATION_STEPS
    numbers = share_of_step(range(4), rank=rank(), world_size=world_size(), micro_batches=pieces)
    trainer.train([images(step, numbers, name) for step in range(count)], [recorder])
    return recorder.steps, gather_to_main(trainer.plain_model.state_dict())


def train_all(folder, strategy, names):
    found = {name: train_share(name, SOLVER__STRATEGY=strategy) for name in names}
    torch.save(found, folder / f"{strategy}{world_size()}_{rank()}.pth")


# (processes, strategy) -> recipes
WORLDS = {(2, "ddp"): [*RECIPES], (2, "fsdp"): [*RECIPES], (4, "fsdp"): [BASE]}
CASES = [(world, name) for world, names in WORLDS.items() for name in names]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Return, by (processes, strategy), a list with the results of each process by recipe."""
    folder = tmp_path_factory.mktemp("worlds")
    jobs = [Job(count, train_all, (folder, strategy, names)) for (count, strategy), names in WORLDS.items()]
    run_in_worlds(jobs, folder)
    found = {}
    for count, strategy in WORLDS:
        files = [folder / f"{strategy}{count}_{number}.pth" for number in range(count)]
        found[count, strategy] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.fixture(scope="module")
def alone():
    """Return a function of the recipe: what one process finds, each computed once."""
    return functools.cache(train_share)


@pytest.mark.parametrize(("world", "name"), CASES, ids=str)
def test_processes_train_as_one(together, alone, world, name):
    steps, weights = alone(name)
    tolerance = 3e-2 if name in ROUNDED else 1e-3
    found_steps, found_weights = together[world][0][name]
    skipped = [number for number, step in enumerate(steps) if step["skipped"]]
    assert skipped == ([1] if name == "poisoned" else [])
    for number, (expected, found) in enumerate(zip(steps, found_steps, strict=True)):
        assert found == pytest.approx(expected, rel=tolerance, abs=1e-4, nan_ok=True), f"step {number}"
    assert found_weights.keys() == weights.keys()
    for key, tensor in weights.items():
        torch.testing.assert_close(found_weights[key], tensor, rtol=tolerance, atol=3e-4, msg=key)


@pytest.mark.parametrize(("world", "name"), CASES, ids=str)
def test_processes_stay_equal(together, world, name):
    (steps, weights), *others = (results[name] for results in together[world])
    for other_steps, other_weights in others:
        assert str(other_steps) == str(steps)  # as text, since NaN is not equal to itself
        for key, tensor in other_weights.items():
            assert tensor is None or torch.equal(tensor, weights[key]), key  # None if sharded


def test_an_unknown_strategy_is_named():
    cfg = tiny_config(SOLVER__STRATEGY="zero")
    with pytest.raises(ValueError, match=r"SOLVER\.STRATEGY is 'zero'; known are: ddp, fsdp"):
        build_trainer(cfg, build_model(cfg))
