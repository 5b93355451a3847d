"""Loading into small real models: all naming schemes, all differences of shape, and the report."""

import logging
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.modeling import MaskFormer  # registers everything
from mask2former.utils.registry import META_ARCH
from mask2former.weights.load import Checkpoint, WeightsError, load_weights, restore_weights

RESNET = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
SWIN = "coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml"
SMALL = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.NUM_HEADS": [1, 2, 4, 8],
    "MODEL.SWIN.WINDOW_SIZE": 3,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 16,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
}
FINE_LAYERS = "MODEL.MASK_FORMER.DECODER.FINE_LAYERS"
R18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 8}
CLASS_HEAD = {"sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"}
EMPTY_WEIGHT = "criterion.empty_weight"


def build(config=RESNET, changes=()) -> MaskFormer:
    """Build a small model with all tensors zero; those that a file does not fill stay zero."""
    cfg = load_config(config, [part for item in {**SMALL, **dict(changes)}.items() for part in item])
    model = META_ARCH.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def random_tensors(shapes):
    """Return a random tensor of each shape by name."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) + 0.5 for name, shape in shapes.items()}


def weights_of(model):
    return random_tensors({name: tensor.shape for name, tensor in model.state_dict().items()})


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def saved(tmp_path, tensors):
    torch.save({"model": tensors}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def assert_filled(model, expected):
    """Assert that the model holds the tensors `expected`, by our names."""
    state = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor.to(state[name].dtype)), name


def backbone_names(model):
    return {name for name in model.state_dict() if name.startswith("backbone.")}


def torchvision_name(ours):
    """Return torchvision's name of a tensor in our ResNets."""
    name = re.sub(r"^backbone\.(stem\.)?", "", ours)
    name = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", name)
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.mark.parametrize(
    ("opts", "count"),
    [
        ({}, 318),  # and fc.weight, fc.bias: 320 in torchvision's file
        ({"MODEL.RESNETS.NORM": "SyncBN"}, 318),
        (R18, 120),  # 122 in torchvision's file
    ],
)
def test_a_torchvision_backbone_is_loaded(tmp_path, opts, count):
    model = build(RESNET, opts)
    theirs = build(RESNET, {**opts, "MODEL.RESNETS.NORM": "SyncBN"})  # has counters, which frozen norms lack
    shapes = {torchvision_name(name): theirs.state_dict()[name].shape for name in backbone_names(theirs)}
    assert len(shapes) == count
    tensors = random_tensors(shapes)
    classifier = {"fc.weight": torch.ones(10, 8), "fc.bias": torch.ones(10)}
    report = load_weights(model, saved(tmp_path, {**tensors, **classifier}))
    assert_filled(model, {name: tensors[torchvision_name(name)] for name in backbone_names(model)})
    assert not report.has_trained_head
    assert "untrained: sem_seg_head" in report.summary()
    assert not any(tensor.any() for tensor in model.sem_seg_head.parameters())


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_a_detectron2_backbone_is_loaded(tmp_path, norm):
    """R-50.pkl has numpy arrays, our names without the prefix, and no counters of batch norms."""
    model = build(RESNET, {"MODEL.RESNETS.NORM": norm})
    state = model.state_dict()
    names = {name for name in backbone_names(model) if not name.endswith("num_batches_tracked")}
    tensors = random_tensors({name.removeprefix("backbone."): state[name].shape for name in names})
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays["stem.fc.weight"] = torch.ones(10, 8).numpy()
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    report = load_weights(model, tmp_path / "R-50.pkl")
    assert_filled(model, {f"backbone.{name}": tensor for name, tensor in tensors.items()})
    assert set(report.loaded) == names
    assert "Detectron2" in report.kind


@pytest.mark.parametrize("converted", [False, True])
def test_a_swin_backbone_is_loaded(tmp_path, converted):
    """Read the authors' file, and the one that users of the original implementation convert from it."""
    model = build(SWIN)
    index = {name: tensor.clone() for name, tensor in model.named_buffers() if name.endswith("_index")}
    state = model.state_dict()
    output_norms = {f"backbone.norm{i}.{p}" for i in range(4) for p in ("weight", "bias")}
    names = backbone_names(model) - output_norms
    assert len(names) == 4 + 12 * 14 + 3 * 3  # patches, 12 blocks and 3 transitions in the authors' file
    tensors = random_tensors({name.removeprefix("backbone."): state[name].shape for name in names})
    classifier = dict.fromkeys(("norm.weight", "head.weight", "head.bias"), torch.ones(10))
    masks = {f"layers.{i}.blocks.1.attn_mask": torch.ones(4, 9, 9) for i in range(3)}
    path = saved(tmp_path, {**tensors, **classifier, **masks})
    if converted:
        content = torch.load(path, weights_only=True)
        path.write_bytes(pickle.dumps({**content, "__author__": "third_party", "matching_heuristics": True}))
    report = load_weights(model, path)
    assert_filled(model, {f"backbone.{k}": v for k, v in tensors.items() if not k.endswith("position_index")})
    assert_filled(model, index)  # computed, never loaded
    assert {name for name in report.untrained if name.startswith("backbone.")} == output_norms
    assert "backbone.norm0" in report.summary()


def test_position_tables_are_interpolated_to_another_window(tmp_path):
    small, large = build(SWIN), build(SWIN, {"MODEL.SWIN.WINDOW_SIZE": 4})
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in weights_of(small).items()
        if name in backbone_names(small) and not name.startswith("backbone.norm")
    }
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    image = torch.stack([torch.full((5, 5), 7.0), torch.rand(5, 5)])  # (A, 2w - 1, 2w - 1)
    tensors[table] = image.flatten(1).T
    index = large.state_dict()[f"backbone.{table}".replace("bias_table", "index")].clone()
    report = load_weights(large, saved(tmp_path, tensors))
    resized = large.state_dict()[f"backbone.{table}"].T.reshape(2, 7, 7)
    assert torch.allclose(resized[0], torch.tensor(7.0))
    assert torch.allclose(resized, F.interpolate(image[None], (7, 7), mode="bicubic")[0])
    assert torch.equal(large.state_dict()[f"backbone.{table}".replace("bias_table", "index")], index)
    assert "interpolated: relative position tables (window 3 -> 4)" in report.summary()
    assert sum(name.endswith("bias_table") for name in report.adapted) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_whole_checkpoint_is_loaded(tmp_path, dtype, old, wrapper):
    model = build(RESNET, {"MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.25})
    tensors = {name: tensor.to(dtype) for name, tensor in weights_of(model).items()}

    def their(name):
        if old:
            name = name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
            name = name.replace(".query_feat.", ".static_query.")
        return wrapper + name

    report = load_weights(model, saved(tmp_path, {their(name): value for name, value in tensors.items()}))
    assert_filled(model, without(tensors, EMPTY_WEIGHT))
    assert model.state_dict()[EMPTY_WEIGHT].tolist() == [1, 1, 1, 1, 1, 0.25]  # from the config
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert report.has_trained_head and report.share_loaded == 1 and not report.problems
    assert report.summary().endswith("(Mask2Former or MaskFormer checkpoint): loaded 100 % of parameters")


UPERNET = "comparators/upernet/upernet_swin_tiny_bs16_160k.yaml"
UPERNETS_CLASSES = {
    f"sem_seg_head.{layer}.{name}"
    for layer in ("predictor", "auxiliary_head.conv_seg")
    for name in ("weight", "bias")
}


def test_the_class_layers_of_upernet_keep_their_initial_values_for_other_classes(tmp_path):
    other, tensors = build(UPERNET, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2}), weights_of(build(UPERNET))
    report = load_weights(other, saved(tmp_path, tensors))
    assert report.adapted.keys() == UPERNETS_CLASSES and not report.has_trained_head
    kept = dict(other.named_parameters()).keys() - UPERNETS_CLASSES
    assert_filled(other, {name: tensors[name] for name in kept})
    assert load_weights(build(UPERNET), saved(tmp_path, tensors)).has_trained_head


def test_the_class_head_keeps_its_initial_values_for_other_classes(tmp_path, caplog):
    other = build(RESNET, {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2})
    tensors = weights_of(build())
    initial = {name: other.state_dict()[name].clone() for name in (*CLASS_HEAD, EMPTY_WEIGHT)}
    with caplog.at_level(logging.INFO):
        report = load_weights(other, saved(tmp_path, tensors))
    assert_filled(other, initial)
    assert_filled(other, {name: tensor for name, tensor in tensors.items() if name not in initial})
    assert report.adapted.keys() == CLASS_HEAD
    assert "re-initialized: class head (5 -> 2 classes)" in report.summary()
    assert report.summary() in caplog.text and "WARNING" not in caplog.text
    assert not report.has_trained_head
    parameters = {name: parameter.numel() for name, parameter in other.named_parameters()}
    kept = sum(size for name, size in parameters.items() if name not in CLASS_HEAD)
    assert report.share_loaded == kept / sum(parameters.values())


@pytest.mark.parametrize("count", [4, 15])
def test_queries_are_cut_or_repeated(tmp_path, count):
    other = build(RESNET, {"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": count})
    tensors = weights_of(build())
    report = load_weights(other, saved(tmp_path, tensors))
    state = other.state_dict()
    for part in ("query_feat", "query_embed"):
        name = f"sem_seg_head.predictor.{part}.weight"
        given, resized = tensors[name], state[name]
        assert torch.equal(resized[:6], given[:count])
        for row in range(6, count):
            distance = (resized[row] - given[row % 6]).abs().max()
            assert 0 < distance < given.std()
        assert len(resized.unique(dim=0)) == count
    sizes = f"(6 -> {count})"
    assert f"resized: query features {sizes}; resized: query positions {sizes}" in report.summary()
    assert report.has_trained_head


def test_published_models_lack_the_projection_for_fine_layers_and_cannot_take_it():
    fine, published = (build(RESNET, {FINE_LAYERS: n, "MODEL.MASK_FORMER.DEC_LAYERS": 3}) for n in (1, 0))
    tensors = weights_of(published)
    report = load_weights(fine, Checkpoint("published.pkl", tensors))
    assert_filled(fine, without(tensors, EMPTY_WEIGHT))
    assert report.untrained == [f"sem_seg_head.predictor.fine_proj.{part}" for part in ("weight", "bias")]
    assert "untrained: sem_seg_head.predictor.fine_proj" in report.summary()
    assert not report.problems and not report.has_trained_head
    with pytest.raises(WeightsError, match=r"unexpected .*fine_proj\.weight"):
        load_weights(published, Checkpoint("fine.pth", weights_of(fine)))
    assert load_weights(fine, Checkpoint("fine.pth", weights_of(fine))).has_trained_head


def test_a_head_without_the_weights_for_pilots_is_trained():
    told = build(RESNET, {"MODEL.MASK_FORMER.DECODER.PILOT_GROUPS": 1})
    assert load_weights(told, Checkpoint("published.pkl", weights_of(build()))).has_trained_head


LAYER = "sem_seg_head.pixel_decoder.mask_features.weight"


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda t: without(t, LAYER), ("missing", LAYER, "-", "(32, 32, 1, 1)")),
        (lambda t: {**t, "extra.x": torch.ones(3)}, ("unexpected", "extra.x", "(3,)", "-")),
        (
            lambda t: {**t, LAYER: torch.ones(32, 16, 1, 1)},
            ("wrong shape", LAYER, "(32, 16, 1, 1)", "(32, 32, 1, 1)"),
        ),
    ],
)
def test_a_misfit_is_an_error_or_reported(tmp_path, caplog, change, row):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = saved(tmp_path, change(weights_of(model)))

    def shown(text):
        return any(all(cell in line for cell in row) for line in text.splitlines())

    with pytest.raises(WeightsError, match=r"do not fit.*WEIGHTS_STRICT False") as error:
        load_weights(model, path)
    assert shown(str(error.value))
    assert_filled(model, before)
    with caplog.at_level(logging.WARNING):
        report = load_weights(model, path, strict=False)
    assert shown(caplog.text)
    assert [misfit[:2] for misfit in report.problems] == [row[:2]]
    assert "1 names do not fit" in report.summary()
    assert report.has_trained_head == (row[0] == "unexpected")


def test_a_long_table_is_shortened_in_the_error_only(tmp_path):
    model = build()
    tensors = {name: tensor for name, tensor in weights_of(model).items() if not name.startswith("backbone")}
    path = saved(tmp_path, tensors)
    missing = len(backbone_names(model))
    with pytest.raises(WeightsError, match=rf"\.\.\. and {missing - 30} more"):
        load_weights(model, path)
    report = load_weights(model, path, strict=False)
    assert len(report.table().splitlines()) == missing + 2
    assert [misfit.problem for misfit in report.problems] == ["missing"] * missing


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_without_any_fitting_tensor_is_an_error(tmp_path, strict):
    with pytest.raises(WeightsError, match="none of its weights is in the model"):
        load_weights(build(), saved(tmp_path, {"encoder.weight": torch.ones(2)}), strict=strict)


def test_a_backbone_of_another_kind_or_depth_is_an_error(tmp_path):
    resnet, deeper = build(), build(RESNET, {"MODEL.RESNETS.DEPTH": 101})
    tensors = {name: t for name, t in weights_of(resnet).items() if name in backbone_names(resnet)}
    path = saved(tmp_path, tensors)
    with pytest.raises(WeightsError, match=r"missing +backbone\.res4\.6\.conv1\.weight"):
        load_weights(deeper, path)
    with pytest.raises(WeightsError, match="none of its weights"):
        load_weights(build(SWIN), path)


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("sem_seg_head.predictor.class_embed.weight", RESNET, (9, 7)),
        ("sem_seg_head.predictor.query_feat.weight", RESNET, (0, 32)),
        ("backbone.layers.0.blocks.0.attn.relative_position_bias_table", SWIN, (0, 1)),
    ],
)
def test_a_tensor_of_another_width_or_without_rows_is_not_adapted(tmp_path, name, config, shape):
    model = build(config)
    path = saved(tmp_path, {**weights_of(model), name: torch.ones(shape)})
    with pytest.raises(WeightsError, match=rf"wrong shape +{name} +\({shape[0]}, {shape[1]}\)"):
        load_weights(model, path)


def test_a_model_without_a_head_has_no_trained_head(tmp_path):
    model = nn.Linear(2, 2)
    report = load_weights(model, saved(tmp_path, model.state_dict()))
    assert not report.has_trained_head


CLASSES = "sem_seg_head.predictor.class_embed.weight"
COUNTER, MEAN, VARIANCE = (
    f"backbone.stem.conv1.norm.{k}" for k in ("num_batches_tracked", "running_mean", "running_var")
)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (CLASSES, lambda t: t.fill_(torch.nan), r"holds nan \(192 of 192 values are not finite\)"),
        (CLASSES, lambda t: t.index_fill(0, torch.tensor(1), -torch.inf), r"holds -inf \(32 of 192"),
        (CLASSES, lambda t: t.double() * 1e300, r"holds inf \(192 of 192"),  # in float32
        (CLASSES, lambda t: t.to(torch.complex64), r"is of type torch.complex64; weights are floating-point"),
        (CLASSES, lambda t: t.to(torch.int8), r"is of type torch.int8; weights are"),
        (MEAN, lambda t: t.long(), r"is of type torch.int64; weights are"),
        (VARIANCE, lambda t: -t, r"holds -1\.\d+; a variance is not negative"),
        (COUNTER, lambda t: t.to(torch.complex64), r"is of type torch.complex64, in the model torch.int64"),
    ],
)
def test_values_that_no_trained_model_has_are_refused(tmp_path, name, change, message, strict):
    model = build(RESNET, {"MODEL.RESNETS.NORM": "SyncBN"})
    tensors = weights_of(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = saved(tmp_path, {**tensors, name: change(tensors[name])})
    with pytest.raises(WeightsError, match=rf"weights\.pth: '{name}' {message}"):
        load_weights(model, path, strict=strict)
    assert_filled(model, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floating_point_weights_of_any_type_are_loaded(tmp_path, dtype):
    model = build(RESNET, {"MODEL.RESNETS.NORM": "SyncBN"})
    tensors = {name: tensor.to(dtype) for name, tensor in weights_of(model).items()}
    tensors[COUNTER] = torch.tensor(7)
    load_weights(model, saved(tmp_path, tensors))
    assert_filled(model, without(tensors, EMPTY_WEIGHT))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.tensor([1.0, torch.inf]), r"last: 'bias' holds inf \(1 of 2 values are not finite\)"),
        (torch.ones(2, dtype=torch.int64), r"last: 'bias' is of type torch\.int64; weights are floating"),
    ],
)
def test_weights_of_a_resumed_run_are_checked_before_any_is_set(bad, message):
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        restore_weights(model, {"weight": torch.ones(2, 3), "bias": bad}, "last")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    restore_weights(model, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "last")
    assert model(torch.ones(3)).tolist() == [3, 3]
