"""Groups by name on a model with one of everything, schedules against their formulas, clipping by hand."""

import math

import pytest
import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    PolynomialDecayParamScheduler,
)
from small_vits import small_vit
from torch import nn

from mask2former.config import get_cfg
from mask2former.engine.optim import build_clipper, build_optimizer, build_scheduler
from mask2former.modeling.vit.backbone import SimplePyramid


def everything():
    """Return a model with one of everything that the recipe treats differently."""
    model = nn.Module()
    model.backbone, model.head = nn.Module(), nn.Module()
    model.backbone.conv = nn.Conv2d(2, 2, 1)
    model.backbone.norm = nn.BatchNorm2d(2)
    model.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(3))
    model.backbone.absolute_pos_embed = nn.Parameter(torch.zeros(3))
    model.head.query_feat = nn.Embedding(2, 2)
    model.head.level_embed = nn.Parameter(torch.zeros(3, 2))
    model.head.linear = model.head.same_linear = nn.Linear(2, 2)
    model.head.norm = nn.LayerNorm(2)
    model.head.group_norm = nn.GroupNorm(1, 2)
    model.head.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    return model


def config(*opts):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.05, *opts])
    return cfg


EXPECTED = {  # name -> (rate, decay), from the recipe; norms and embeddings at the values set in the test
    "backbone.conv.weight": (1e-5, 0.05),
    "backbone.conv.bias": (1e-5, 0.05),
    "backbone.norm.weight": (1e-5, 0.001),
    "backbone.norm.bias": (1e-5, 0.001),
    "backbone.relative_position_bias_table": (1e-5, 0.0),
    "backbone.absolute_pos_embed": (1e-5, 0.0),
    "head.query_feat.weight": (1e-4, 0.002),
    "head.level_embed": (1e-4, 0.05),
    "head.linear.weight": (1e-4, 0.05),
    "head.linear.bias": (1e-4, 0.05),
    "head.norm.weight": (1e-4, 0.001),
    "head.norm.bias": (1e-4, 0.001),
    "head.group_norm.weight": (1e-4, 0.001),
    "head.group_norm.bias": (1e-4, 0.001),
}


def test_every_parameter_has_its_rate_and_decay():
    model = everything()
    cfg = config("SOLVER.WEIGHT_DECAY_NORM", 0.001, "SOLVER.WEIGHT_DECAY_EMBED", 0.002)
    groups = build_optimizer(cfg, model).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == EXPECTED.keys()
    for name, values in EXPECTED.items():
        assert found[name] == pytest.approx(values), name
    assert sum(len(group["params"]) for group in groups) == len(EXPECTED)
    assert len(groups) == len(set(EXPECTED.values()))


def vit_model():
    model = nn.Module()
    model.backbone = SimplePyramid(small_vit(patch_size=16))  # 3 blocks
    model.head = nn.Linear(2, 2)
    return model


def rates_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("rule", "powers"),  # of the decay: embeddings, three blocks
    [("beit", (4, 3, 2, 1)), ("eomt", (2, 2, 1, 0))],
)
def test_rates_fall_from_the_last_block_of_a_vision_transformer_to_its_embeddings(rule, powers):
    model, embeddings = vit_model(), ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight")
    keys = ("SOLVER.LAYER_DECAY", 0.8, "SOLVER.LAYER_DECAY_RULE", rule, "SOLVER.BACKBONE_MULTIPLIER", 0.5)
    rates = rates_by_name(model, build_optimizer(config(*keys), model))
    expected = {f"backbone.vit.{name}": powers[0] for name in embeddings}
    expected |= {f"backbone.vit.blocks.{i}.attn.qkv.weight": powers[i + 1] for i in range(3)}
    expected |= {f"backbone.vit.blocks.{i}.ls2.gamma": powers[i + 1] for i in range(3)}
    expected |= {"backbone.vit.norm.weight": 0, "backbone.pyramid.res3.0.conv1.weight": 0}
    for name, power in expected.items():
        assert rates[name] == pytest.approx(1e-4 * 0.5 * 0.8**power), name
    assert rates["head.weight"] == pytest.approx(1e-4)
    assert len(rates) == len(list(model.parameters()))


@pytest.mark.parametrize(("rule", "powers"), [("beit", (4, 3, 0, 0)), ("eomt", (2, 2, 0, 0))])
def test_last_blocks_may_keep_the_full_rate_and_the_others_the_rates_they_had(rule, powers):
    model = vit_model()
    keys = ("SOLVER.LAYER_DECAY", 0.8, "SOLVER.LAYER_DECAY_RULE", rule, "SOLVER.FULL_RATE_BLOCKS", 2)
    rates = rates_by_name(model, build_optimizer(config(*keys, "SOLVER.BACKBONE_MULTIPLIER", 0.5), model))
    names = ("patch_embed.proj.bias", *(f"blocks.{i}.norm1.weight" for i in range(3)))
    for name, power in zip(names, powers, strict=True):
        assert rates[f"backbone.vit.{name}"] == pytest.approx(1e-4 * 0.5 * 0.8**power), name


def test_tokens_and_positions_have_the_decay_of_embeddings_and_factors_that_of_norms():
    groups = build_optimizer(config("SOLVER.WEIGHT_DECAY_NORM", 0.001), (model := vit_model())).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert {decays[f"backbone.vit.{name}"] for name in ("cls_token", "reg_token", "pos_embed")} == {0.0}
    assert decays["backbone.vit.blocks.0.ls1.gamma"] == decays["backbone.vit.norm.bias"] == 0.001
    assert decays["backbone.vit.blocks.0.attn.qkv.weight"] == 0.05


def test_layer_decay_needs_a_rule():
    with pytest.raises(ValueError, match="LAYER_DECAY_RULE is 'swin'; known are: beit, eomt"):
        build_optimizer(config("SOLVER.LAYER_DECAY", 0.8, "SOLVER.LAYER_DECAY_RULE", "swin"), vit_model())


@pytest.mark.parametrize(("key", "value"), [("LAYER_DECAY", 0.8), ("VIT_WARMUP_ITERS", 3)])
def test_keys_of_vision_transformers_need_one(key, value):
    with pytest.raises(ValueError, match=rf"SOLVER\.{key} {value} is for plain vision transformers alone"):
        build_optimizer(config(f"SOLVER.{key}", value), everything())


def test_published_recipe_merges_norms_and_embeddings_into_one_group():
    groups = build_optimizer(config(), everything()).param_groups
    settings = sorted((group["lr"], group["weight_decay"]) for group in groups)
    assert settings == [
        pytest.approx(pair) for pair in [(1e-5, 0.0), (1e-5, 0.05), (1e-4, 0.0), (1e-4, 0.05)]
    ]
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in groups)


def test_sgd_has_its_momentum():
    optimizer = build_optimizer(config("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.8), everything())
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.8


def rates(cfg, steps):
    """Return the rate of the head at each of `steps` steps."""
    optimizer = build_optimizer(cfg, everything())
    scheduler = build_scheduler(cfg, optimizer)
    found = []
    for _ in range(steps):
        found.append(max(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("WarmupMultiStepLR", MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[20, 30], num_updates=40)),
        ("WarmupPolyLR", PolynomialDecayParamScheduler(1.0, 0.9)),
        ("WarmupCosineLR", CosineParamScheduler(1.0, 0.0)),
    ],
)
def test_schedules_after_warm_up_equal_fvcore(name, reference):
    cfg = config("SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.MAX_ITER", 40, "SOLVER.STEPS", (20, 30))
    cfg.SOLVER.WARMUP_ITERS = 4
    found = rates(cfg, 40)
    assert found[4:] == pytest.approx([1e-4 * reference(step / 40) for step in range(4, 40)])


def test_polynomial_ends_constant():
    cfg = config("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 0)
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.3
    assert rates(cfg, 10)[-3:] == pytest.approx([1e-4 * 0.3**0.9 if 0.3**0.9 > 0.3 else 3e-5, 3e-5, 3e-5])


@pytest.mark.parametrize(
    ("method", "factors"),
    [("linear", [0.2, 0.4, 0.6, 0.8]), ("linear", [1.0] * 4), ("constant", [0.2] * 4)],
)
def test_warm_up(method, factors):
    cfg = config("SOLVER.WARMUP_METHOD", method, "SOLVER.WARMUP_FACTOR", factors[0], "SOLVER.WARMUP_ITERS", 4)
    assert rates(cfg, 6) == pytest.approx([1e-4 * f for f in [*factors, 1, 1]])


# Factors of a straight decay over 10 steps: 2 of warm-up, and 3 more in which the vision transformer's rises
REST = [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
WAITING = [0, 0, 0, 1 / 3, 2 / 3, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
LATE = {"MAX_ITER": 10, "WARMUP_ITERS": 2, "WARMUP_FACTOR": 0.0, "VIT_WARMUP_ITERS": 3, "POLY_LR_POWER": 1.0}
LATE |= {"LR_SCHEDULER_NAME": "WarmupThenPolyLR", "BACKBONE_MULTIPLIER": 1.0}


def late_config(**changes):
    return config(*(item for key, value in {**LATE, **changes}.items() for item in (f"SOLVER.{key}", value)))


def test_a_vision_transformer_warms_up_after_the_rest_and_both_decay_from_their_own_end():
    model, cfg = vit_model(), late_config()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    assert len(rates_by_name(model, optimizer)) == len(list(model.parameters()))
    for rest, waiting in zip(REST, WAITING, strict=True):
        for name, rate in rates_by_name(model, optimizer).items():
            expected = waiting if name.startswith("backbone.vit.") else rest
            assert rate == pytest.approx(1e-4 * expected), name
        optimizer.step()
        scheduler.step()


def test_a_waiting_vision_transformer_is_not_changed_by_weight_decay_either():
    model, cfg = vit_model(), late_config(BASE_LR=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
        changed = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
        if step == 2:
            assert changed == {name for name in before if not name.startswith("backbone.vit.")}
    assert changed == set(before)


def test_other_schedules_take_the_late_warm_up_too_and_keep_their_milestones():
    model, cfg = vit_model(), late_config(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(4, 7))
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    for waiting in [0, 0, 0, 1 / 3, 2 / 30, 0.1, 0.1, 0.01]:
        assert rates_by_name(model, optimizer)["backbone.vit.cls_token"] == pytest.approx(1e-4 * waiting)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("OPTIMIZER", "ADAMW, SGD"),
        ("LR_SCHEDULER_NAME", "WarmupCosineLR, WarmupMultiStepLR, WarmupPolyLR, WarmupThenPolyLR"),
        ("WARMUP_METHOD", "linear, constant"),
    ],
)
def test_unknown_names_are_errors_with_the_known_ones(key, known):
    with pytest.raises(ValueError, match=f"SOLVER.{key} is 'sudden'; known are: {known}"):
        rates(config(f"SOLVER.{key}", "sudden"), 1)


def clipped(*opts):
    """Return the gradients (3, 4) and (12,) after clipping, and the norm that is reported."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    norm = build_clipper(config(*opts))(parameters)
    return [p.grad.tolist() for p in parameters], norm.item()


def clip_options(kind, value):
    prefix = "SOLVER.CLIP_GRADIENTS."
    return [prefix + "ENABLED", True, prefix + "CLIP_TYPE", kind, prefix + "CLIP_VALUE", value]


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ([], [[3, 4], [12]]),
        (clip_options("full_model", 1.3), [[0.3, 0.4], [1.2]]),
        (clip_options("full_model", 100.0), [[3, 4], [12]]),
        (clip_options("value", 3.5), [[3, 3.5], [3.5]]),
        (clip_options("norm", 1.0), [[0.6, 0.8], [1.0]]),
    ],
)
def test_clipping(opts, expected):
    gradients, norm = clipped(*opts)
    for found, wanted in zip(gradients, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    assert norm == pytest.approx(13.0)


def test_unknown_clipping_is_named_and_a_norm_that_is_not_finite_is_reported():
    with pytest.raises(ValueError, match=r"CLIP_TYPE is 'all'.*full_model"):
        clipped(*clip_options("all", 1.0))
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert not math.isfinite(build_clipper(config())([parameter]))
