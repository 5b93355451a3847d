"""The per-pixel baselines: training, results, and combinations of keys that make no sense."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.loss.pixel_criterion import PixelCriterion
from mask2former.structures import Instances
from mask2former.utils.registry import CRITERION

SMALL = [
    *("DATASETS.TRAIN", (), "DATASETS.TEST", ()),
    *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 16),
    *("MODEL.MASK_FORMER.HIDDEN_DIM", 32, "MODEL.MASK_FORMER.NHEADS", 2, "MODEL.MASK_FORMER.DEC_LAYERS", 2),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 16, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
]
BASELINES = {
    f"PerPixelBaseline{kind}Head": f"maskformer/ade20k-150/per_pixel_baseline{name}_R50_bs16_160k.yaml"
    for kind, name in (("", ""), ("Plus", "_plus"))
} | {"UperNetHead": "comparators/upernet/upernet_R50_bs16_160k.yaml"}
MASKFORMER = "maskformer/ade20k-150/maskformer_R50_bs16_160k.yaml"


def build(file, *opts):
    torch.manual_seed(0)
    return build_model(load_config(file, [*SMALL, *opts]))


def image(rows, columns, **more):
    return {"image": torch.randint(256, (3, rows, columns), dtype=torch.uint8), **more}


@pytest.fixture(params=BASELINES)
def model(request):
    return build(BASELINES[request.param])


def test_training_gives_every_parameter_a_gradient(model):
    masks = torch.zeros(2, 50, 70, dtype=torch.bool)
    masks[0, :20], masks[1, 20:40] = True, True
    target = Instances((50, 70), gt_classes=torch.tensor([0, 4]), gt_masks=masks)
    losses = model.train()([image(50, 70, instances=target)] * 2)
    assert "loss_sem_seg" in losses
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("head", BASELINES)
def test_the_criterion_is_for_pixels_unless_the_config_names_another(head, monkeypatch):
    class Own(nn.Module):
        pass

    monkeypatch.setitem(CRITERION._obj_map, "Own", lambda cfg: Own())
    assert isinstance(build(BASELINES[head]).criterion, PixelCriterion)
    assert isinstance(build(BASELINES[head], "MODEL.MASK_FORMER.CRITERION_NAME", "Own").criterion, Own)
    with pytest.raises(ValueError, match=r"CRITERION_NAME.*PixelCriterion"):
        build(BASELINES[head], "MODEL.MASK_FORMER.CRITERION_NAME", "PixelCriteria")


def test_results_are_enlarged_cropped_and_resized_logits(model):
    model.eval()
    inputs = image(50, 70, height=100, width=90)
    with torch.no_grad():
        logits = model.network(model._images([inputs])).mask_logits()
        enlarged = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)[..., :50, :70]
        expected = F.interpolate(enlarged, (100, 90), mode="bilinear", align_corners=False)[0]
    (result,) = model([inputs])
    assert result.keys() == {"sem_seg"}
    torch.testing.assert_close(result["sem_seg"], expected, atol=1e-4, rtol=1e-4)
    (compact,) = model.predict([inputs], compact=True)
    best, second = result["sem_seg"].topk(2, dim=0).values
    sure = best - second > 1e-4
    assert torch.equal(compact["label_map"][sure], result["sem_seg"].argmax(0).int()[sure])


def test_upernets_auxiliary_head_learns_with_its_weight_or_is_left_out():
    masks = torch.ones(1, 50, 70, dtype=torch.bool)
    target = Instances((50, 70), gt_classes=torch.tensor([3]), gt_masks=masks)
    batch = [image(50, 70, instances=target), image(50, 70, instances=target)]
    losses = {}
    for weight in (0.4, 0.8, 0.0):
        model = build(BASELINES["UperNetHead"], "MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT", weight)
        losses[weight] = {name: loss.item() for name, loss in model(batch).items()}
        assert (model.sem_seg_head.auxiliary_head is None) == (weight == 0)
    assert losses[0.4].keys() == {"loss_sem_seg", "loss_sem_seg_auxiliary"} > losses[0.0].keys()
    half = losses[0.8]["loss_sem_seg_auxiliary"] / 2
    assert losses[0.4]["loss_sem_seg_auxiliary"] == pytest.approx(half, rel=1e-5)


def test_upernet_says_what_to_change_if_a_step_has_too_few_images_for_batch_norm():
    target = Instances((50, 70), gt_classes=torch.zeros(0).long(), gt_masks=torch.zeros(0, 50, 70).bool())
    batch = [image(50, 70, instances=target)]
    with pytest.raises(ValueError, match=r"needs two images.*SOLVER.IMS_PER_BATCH.*NORM GN"):
        build(BASELINES["UperNetHead"])(batch)
    assert build(BASELINES["UperNetHead"], "MODEL.SEM_SEG_HEAD.NORM", "")(batch)


def test_large_logits_do_not_tie():
    """A sigmoid would turn both of these classes to 1."""
    model = build(BASELINES["PerPixelBaselineHead"]).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.copy_(torch.tensor([40.0, 41.0, 0.0, 0.0, 0.0]))
    (result,) = model.predict([image(64, 64)], compact=True)
    assert (result["label_map"] == 1).all()


def test_negative_logits_are_compared_like_others():
    model = build(BASELINES["PerPixelBaselineHead"]).eval()
    with torch.no_grad():
        model.sem_seg_head.predictor.weight.zero_()
        model.sem_seg_head.predictor.bias.copy_(torch.tensor([-4.0, -5.0, -3.0, -5.0, -4.0]))
    (result,) = model.predict([image(64, 64)], compact=True)
    assert (result["label_map"] == 2).all()


@pytest.mark.parametrize(
    ("file", "opts", "message"),
    [
        (
            MASKFORMER,
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            "SemanticSegmentor needs .* MaskFormerHead",
        ),
        (
            BASELINES["PerPixelBaselineHead"],
            ["MODEL.META_ARCHITECTURE", "MaskFormer"],
            "PerPixelBaselineHead predicts no masks; it needs MODEL.META_ARCHITECTURE SemanticSegmentor",
        ),
        (
            BASELINES["PerPixelBaselineHead"],
            ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True],
            "TEST.PANOPTIC_ON is True, but MODEL.META_ARCHITECTURE SemanticSegmentor",
        ),
        (
            BASELINES["PerPixelBaselinePlusHead"],
            ["MODEL.MASK_FORMER.DECODER.ATTENTION", "pooling"],
            "DECODER.ATTENTION is 'pooling', .*, but MODEL.SEM_SEG_HEAD.NAME is PerPixelBaselinePlusHead",
        ),
        (
            BASELINES["UperNetHead"],
            ["MODEL.MASK_FORMER.DECODER.LEARNED_QUERIES", False],
            "DECODER.LEARNED_QUERIES is False, .*, but MODEL.SEM_SEG_HEAD.NAME is UperNetHead",
        ),
        (
            BASELINES["UperNetHead"],
            ["MODEL.META_ARCHITECTURE", "MaskFormer"],
            "UperNetHead predicts no masks; it needs MODEL.META_ARCHITECTURE SemanticSegmentor",
        ),
        (
            BASELINES["UperNetHead"],
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]],
            r"MODEL.SEM_SEG_HEAD.IN_FEATURES is \['res5'\]; a pyramid needs at least two maps",
        ),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.DECODER.MEMORY_STRIDE", 8],
            "DECODER.MEMORY_STRIDE is 8, .*TRANSFORMER_DECODER_NAME is StandardTransformerDecoder",
        ),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder"],
            "FEATURE is 'transformer_encoder'; with .*PIXEL_DECODER_NAME BasePixelDecoder it must be",
        ),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"],
            "FEATURE 'multi_scale_pixel_decoder' gives 3 maps, but .*StandardTransformerDecoder",
        ),
        (
            MASKFORMER,
            ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"],
            "MultiScaleMaskedTransformerDecoder reads .*TRANSFORMER_IN_FEATURE .*, not res5",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_errors_that_name_both_keys(file, opts, message):
    with pytest.raises(ValueError, match=message):
        build(file, *opts)


@pytest.mark.parametrize("feature", ["res4", "res5", "pixel_embedding"])
def test_the_decoder_reads_the_map_that_is_named(feature):
    model = build(MASKFORMER, "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", feature).eval()
    read = []
    model.sem_seg_head.predictor.register_forward_pre_hook(lambda _, inputs: read.extend(inputs[0]))
    model([image(64, 96)])
    stride = {"res4": 16, "res5": 32, "pixel_embedding": 4}[feature]
    assert [tuple(x.shape[2:]) for x in read] == [(64 // stride, 96 // stride)]


def test_size_divisibility_zero_pads_to_the_largest_image_alone():
    model = build(MASKFORMER, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 0)
    assert model._images([image(33, 50), image(30, 51)]).shape == (2, 3, 33, 51)
    with pytest.raises(ValueError, match="SIZE_DIVISIBILITY must not be negative"):
        build(MASKFORMER, "MODEL.MASK_FORMER.SIZE_DIVISIBILITY", -1)
