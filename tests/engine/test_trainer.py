"""Trainer on a model of one weight vector, where each step can be computed by hand."""

import pytest
import torch
from small_vits import small_vit
from tiny_clips import drawn_clip
from tiny_runs import random_sample
from torch import nn

from mask2former.config import get_cfg
from mask2former.engine.errors import TrainingError
from mask2former.engine.optim import build_clipper, build_optimizer, build_scheduler
from mask2former.engine.trainer import Hook, Trainer, autocast_dtype, describe_image, is_due
from mask2former.structures import Instances

NAN = float("nan")
INF = float("inf")


def sample(name, value=1.0):
    """Return an image whose loss is `value` times the weights' sum of squares."""
    targets = Instances((4, 6), gt_classes=torch.zeros(2, dtype=torch.int64))
    return {"file_name": name, "image": torch.full((3, 4, 6), float(value)), "instances": targets}


class Squares(nn.Module):
    """Two losses, quadratic in the weights and linear in the mean of each image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.seen_dtypes = []
        self.batch_sizes = []

    def forward(self, batch):
        self.batch_sizes.append(len(batch))
        self.seen_dtypes.append(torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype)
        scale = torch.stack([s["image"].mean() for s in batch]).mean()
        return {"loss_ce": scale * self.weight.square().sum(), "loss_ce_0": 0.5 * self.weight.sum()}


class RootOfNothing(Squares):
    """A finite loss with a non-finite gradient: the square root at zero."""

    def forward(self, batch):
        return {"loss_mask": (self.weight * 0).abs().sum().sqrt()}


class Failing(Squares):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, batch):
        raise self.error


def make_trainer(model=None, *, max_iter=3, opts=(), **options):
    cfg = get_cfg()
    solver = {"WARMUP_ITERS": 0, "BASE_LR": 0.1, "MAX_ITER": max_iter, "STEPS": (2,)}
    cfg.merge_from_list([item for key, value in solver.items() for item in (f"SOLVER.{key}", value)])
    cfg.merge_from_list(list(opts))
    model = model or Squares()
    optimizer = build_optimizer(cfg, model)
    parts = {"optimizer": optimizer, "scheduler": build_scheduler(cfg, optimizer), "clip": build_clipper(cfg)}
    return Trainer(model=model, max_iter=max_iter, **parts, **options)


def test_steps_equal_plain_adamw():
    trainer = make_trainer(opts=["SOLVER.WEIGHT_DECAY", 0.05])
    trainer.train([[sample("a", 1), sample("b", 3)]] * 3)

    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    plain = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.05)
    for rate in (0.1, 0.1, 0.01):
        plain.param_groups[0]["lr"] = rate
        plain.zero_grad()
        (2 * weight.square().sum() + 0.5 * weight.sum()).backward()
        plain.step()
    torch.testing.assert_close(trainer.model.weight.data, weight.data)
    assert trainer.done == 3


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_non_finite_loss_skips_the_step_and_is_named(bad, caplog):
    model = Squares()
    trainer = make_trainer(model, max_iter=1)
    before = model.weight.detach().clone()
    trainer.train([[sample("good.jpg"), sample("bad.jpg", bad)]])
    assert torch.equal(model.weight, before)
    assert "loss_ce, the gradient not finite" in caplog.text and "bad.jpg (4 x 6, 2 objects)" in caplog.text
    assert "loss_ce_0" not in caplog.text

    trainer.max_iter = 2
    trainer.train([[sample("good.jpg")]])
    assert torch.isfinite(model.weight).all() and not torch.equal(model.weight, before)
    assert trainer.window.count == 1 and trainer.window.means()["loss_ce"] == pytest.approx(14.0)


def test_a_clip_is_named_by_its_first_frame():
    clip = drawn_clip(32, 64, tracks=4, seed=3)
    assert describe_image(clip) == "3/0.jpg (32 x 64, 4 objects)"
    clip["instances"][0].gt_ids[2] = -1  # not yet there
    assert describe_image(clip) == "3/0.jpg (32 x 64, 3 objects)"
    assert describe_image(random_sample(3, 4)) == "3.jpg (64 x 64, 4 objects)"


def test_a_non_finite_gradient_skips_the_step(caplog):
    trainer = make_trainer(RootOfNothing(), max_iter=1, opts=["SOLVER.CLIP_GRADIENTS.ENABLED", True])
    trainer.train([[sample("a.jpg")]])
    assert trainer.model.weight.tolist() == [1.0, -2.0, 3.0]
    assert "the gradient not finite on a.jpg" in caplog.text and "loss_mask" not in caplog.text


def test_ten_skipped_steps_in_a_row_stop_the_run():
    trainer = make_trainer(max_iter=100)
    batches = [[sample("x.jpg", NAN)]] * 9 + [[sample("fine.jpg")]] + [[sample("y.jpg", NAN)]] * 10
    with pytest.raises(TrainingError, match=r"step 19: 10 steps in a row.*SOLVER\.BASE_LR.*loss_ce.*y\.jpg"):
        trainer.train(batches)
    assert torch.isfinite(trainer.model.weight).all()


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_changes_nothing_for_losses_that_are_means(parts):
    batch = [sample(str(n), n) for n in range(5)]
    whole, split = make_trainer(), make_trainer(accumulation=parts)
    whole.train([batch] * 3)
    split.train([batch] * 3)
    torch.testing.assert_close(split.model.weight.data, whole.model.weight.data)
    assert len(split.model.batch_sizes) == 3 * parts and sum(split.model.batch_sizes) == 15
    assert split.window.means() == pytest.approx(whole.window.means())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_on_a_cpu_and_an_unknown_one(name, dtype):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", name])
    assert autocast_dtype(cfg, torch.device("cpu")) is dtype
    cfg.SOLVER.AMP.ENABLED = False
    assert autocast_dtype(cfg, torch.device("cpu")) is None
    cfg.merge_from_list(["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "half"])
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE is 'half'.*bfloat16"):
        autocast_dtype(cfg, torch.device("cpu"))


def test_bfloat16_computes_with_float32_weights():
    trainer = make_trainer(dtype=torch.bfloat16)
    trainer.train([[sample("a")]] * 3)
    assert trainer.model.seen_dtypes == [torch.bfloat16] * 3
    assert trainer.model.weight.dtype == torch.float32


def test_float16_overflow_lowers_the_scale_instead_of_failing():
    trainer = make_trainer(max_iter=20, dtype=torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    trainer.train([[sample("a", 1e4)]] * 20)  # 6e4 * scale is beyond float32 until the scale is 2^112
    assert trainer.scaler.get_scale() <= 2.0**112
    assert torch.isfinite(trainer.model.weight).all() and trainer.model.weight.tolist() != [1.0, -2.0, 3.0]


NAMES_IMAGE_AND_KEY = r"big\.jpg \(4 x 6, 2 objects\).*ACCUMULATION_STEPS \(now 1\)"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), TrainingError, NAMES_IMAGE_AND_KEY),
        (MemoryError("Unable to allocate 3 GiB"), TrainingError, NAMES_IMAGE_AND_KEY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), TrainingError, NAMES_IMAGE_AND_KEY),
        (RuntimeError("shapes differ"), RuntimeError, r"^shapes differ$"),
    ],
)
def test_out_of_memory_is_explained_and_other_errors_are_not(error, kind, message):
    with pytest.raises(kind, match=message):
        make_trainer(Failing(error)).train([[sample("big.jpg")]])


class Noisy(Squares):
    """Losses that draw from the global generator, as drop path does."""

    def forward(self, batch):
        return {name: loss * torch.rand(()) for name, loss in super().forward(batch).items()}


class Save(Hook):
    def __init__(self, path):
        self.path = path

    def after_step(self, trainer):
        torch.save({"model": trainer.plain_model.state_dict(), **trainer.state_dict()}, self.path)


def test_a_resumed_trainer_has_the_learning_rates_of_its_config():
    first = make_trainer(max_iter=2)
    first.train([[sample("a")]] * 2)
    state = first.state_dict()
    second = make_trainer(max_iter=3, opts=["SOLVER.BASE_LR", 0.5, "SOLVER.WEIGHT_DECAY", 0.25])
    second.load_state_dict(state)
    group = second.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.05)  # step 2 is beyond the milestone
    assert group["weight_decay"] == 0.25
    assert second.optimizer.state_dict()["state"][0]["step"] == 2


def test_a_resumed_trainer_has_the_rates_of_both_warm_ups():
    opts = ["SOLVER.WARMUP_ITERS", 2, "SOLVER.VIT_WARMUP_ITERS", 4, "SOLVER.WARMUP_FACTOR", 0.0]
    opts += ["SOLVER.LR_SCHEDULER_NAME", "WarmupThenPolyLR", "SOLVER.POLY_LR_POWER", 1.0]

    def trainer():
        model = Squares()
        model.vit = small_vit(patch_size=16)
        return make_trainer(model, max_iter=10, opts=[*opts, "SOLVER.BASE_LR", 1.0])

    first, second = trainer(), trainer()
    first.max_iter = 5
    first.train([[sample("a")]] * 5)
    second.load_state_dict(first.state_dict())
    rates = {group["waits"]: group["lr"] for group in second.optimizer.param_groups}
    assert rates == {False: pytest.approx(5 / 8), True: pytest.approx(3 / 4)}
    assert second.learning_rate == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("steps", "period", "due"),
    [(0, 5, False), (4, 5, False), (5, 5, True), (10, 5, True), (5, 0, False), (5, -1, False)],
)
def test_is_due(steps, period, due):
    assert is_due(steps, period) is due


def test_a_resumed_trainer_continues_as_an_uninterrupted_one(tmp_path):
    batches = [[sample("a", n)] for n in range(1, 7)]
    whole = make_trainer(Noisy(), max_iter=6)
    whole.train(batches)

    first = make_trainer(Noisy(), max_iter=3)
    first.train(batches, [Save(tmp_path / "state.pth")])
    saved = torch.load(tmp_path / "state.pth", weights_only=True)
    second = make_trainer(Noisy(), max_iter=6)
    second.model.load_state_dict(saved["model"])
    second.load_state_dict(saved)
    assert second.done == 3
    torch.rand(5)  # a new process has another random state
    second.train(batches[3:])
    assert torch.equal(second.model.weight, whole.model.weight)
    assert second.window == whole.window


def test_a_skipped_step_does_not_count_in_the_average_of_the_weights():
    trainer = make_trainer(max_iter=1, ema_decay=0.5)
    trainer.train([[sample("good.jpg")]])
    (average,) = [tensor.clone() for tensor in trainer.average.tensors()]
    assert not torch.equal(average, torch.tensor([1.0, -2.0, 3.0]))
    trainer.max_iter = 2
    trainer.train([[sample("bad.jpg", NAN)]])
    assert torch.equal(trainer.average.tensors()[0], average)
