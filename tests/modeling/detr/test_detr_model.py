"""DETR as a model: parameters, stages, categories, boxes that stand for masks, and wrong configs."""

from dataclasses import replace

import pytest
import torch
from small_detr import CONFIG, SMALL, draw_inputs, small_detr

from mask2former.config import config_names, load_config
from mask2former.data import MetadataCatalog
from mask2former.engine.build import build_model
from mask2former.modeling.detr.postprocessing import detr_results
from mask2former.modeling.detr.predictions import depths_in_boxes
from mask2former.modeling.precision import set_precision
from mask2former.modeling.predictions import Sizes
from mask2former.weights.load import load_weights

BOXES = "comparators/detr/detr_R50_boxes_bs64_500ep.yaml"
CONFIGS = [name for name in config_names() if name.startswith("comparators/detr/")]
R50_DETECTOR, ATTENTION, MASK_HEAD = 41_565_631, 131_584, 1_202_073
R101_MORE = 18_939_904


def on_meta(config, *opts):
    with torch.device("meta"):
        return build_model(load_config(config, ["MODEL.DEVICE", "meta", *opts]))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters(config):
    """Detection 41.57 million, attention 0.13, mask head 1.20: 42.90 million."""
    model = on_meta(config)
    detector = R50_DETECTOR + ("R101" in config) * R101_MORE
    if "boxes" in config:
        assert count(model) == detector
        return
    head = model.sem_seg_head
    assert (count(head.bbox_attention), count(head.mask_head)) == (ATTENTION, MASK_HEAD)
    assert count(model) == detector + ATTENTION + MASK_HEAD
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(name.split(".")[1] in ("bbox_attention", "mask_head") for name in trained)
    assert len(trained) == 4 + 2 * 14


def test_outputs_are_the_datasets_own_ids():
    ids = MetadataCatalog.get("coco_2017_val_panoptic").stuff_dataset_id_to_contiguous_id
    outputs = on_meta(CONFIG).sem_seg_head.outputs
    cfg = load_config(CONFIG)
    assert len(outputs) == 134 and cfg.MODEL.DETR.NUM_IDS == 250
    assert {own: number for number, own in enumerate(cfg.MODEL.DETR.CATEGORY_IDS)} == ids


def test_probabilities_are_shares_of_all_outputs():
    model = small_detr()
    (inputs,) = draw_inputs((64, 96))
    with torch.no_grad():
        predictions = model.network(model._images([inputs]))
        (found,) = predictions.of_images([Sizes((64, 96), (64, 96), (64, 96))])
        logits = predictions.class_logits[-1, 0]
    ids = load_config(CONFIG).MODEL.DETR.CATEGORY_IDS
    shares = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(found.probabilities, shares[:, [*ids, 250]])
    assert (found.probabilities.sum(-1) < 1).all() and found.num_classes == 133


def test_without_ids_classes_have_the_first_outputs():
    options = ["MODEL.DETR.CATEGORY_IDS", [], "MODEL.DETR.NUM_IDS", 0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    model = small_detr(*options, "MODEL.MASK_FORMER.THING_IDS", [0])
    assert model.sem_seg_head.outputs.tolist() == [0, 1, 2, 3]
    assert model.sem_seg_head.class_embed.out_features == 4


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_masks_are_computed_of_the_queries_alone_that_results_are_made_of(task):
    model, inputs, sizes = small_detr(), draw_inputs((64, 96), (64, 96)), Sizes((64, 96), (64, 96), (64, 96))
    with torch.no_grad():
        model.sem_seg_head.class_embed.weight *= 8  # so that the queries' classes differ
        every = model.network(model._images(inputs)).of_images([sizes, sizes])
    threshold = torch.cat([found.probabilities.amax(1) for found in every]).median().item()
    model.inference = replace(model.inference, tasks=(task,), object_mask_threshold=threshold)
    assert 2 <= sum(len(found.mask_logits) for found in model.predict_images(inputs)) < 12
    for result, found in zip(model.predict(inputs, compact=True), every, strict=True):
        expected = detr_results(found, model.inference, compact=True)
        assert result["best_query_score"] == expected["best_query_score"]
        if task == "panoptic":
            assert torch.equal(result["panoptic_seg"][0], expected["panoptic_seg"][0])
            assert result["panoptic_seg"][1] == expected["panoptic_seg"][1]
        else:
            assert torch.equal(result["instances"].scores, expected["instances"].scores)
            assert torch.equal(
                result["instances"].pred_masks.dense(), expected["instances"].pred_masks.dense()
            )


def test_a_mask_of_the_first_stage_is_the_box():
    model = small_detr("MODEL.MASK_FORMER.THING_IDS", list(range(133)), config=BOXES)
    inputs = draw_inputs((64, 96), (48, 80))
    for found, item in zip(model.predict_images(inputs), inputs, strict=True):
        results = model.predict([{**item, "height": 300, "width": 500}])[0]
        assert found.mask_logits.shape == (6, 16, 24)
        instances = results["instances"]
        for mask, box in zip(instances.pred_masks, instances.pred_boxes, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            found_box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert torch.tensor(found_box) == pytest.approx(box.tensor.numpy(), abs=2 * 500 / 80)


@pytest.mark.parametrize("training", [False, True])
def test_bf16_gives_nearly_the_same(training):
    model, inputs = small_detr().train(training), draw_inputs((64, 96), (80, 64), objects=(2, 1))
    with torch.no_grad():
        exact = model.losses(inputs)
        if training:
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.losses(inputs)
        else:
            set_precision(model, "bf16")
            model.predict(inputs)
            with torch.autocast("cpu", torch.bfloat16):
                rounded = model.losses(inputs)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(value.item(), rel=0.1)


def test_depths_in_a_box_by_hand():
    depths = depths_in_boxes(torch.tensor([[0.5, 0.5, 0.5, 1.0]]), (8, 16), (8, 20))
    assert depths.shape == (1, 2, 5)  # centers at 2, 6, 10, 14, 18; the box goes from 4 to 12
    assert depths[0, 0].tolist() == [-2, 2, 2, -2, -6]


@pytest.mark.parametrize("stage", ["boxes", "masks"])
def test_training_gives_the_stages_parameters_a_gradient(stage):
    model = small_detr("MODEL.DETR.STAGE", stage, "MODEL.ACTIVATION_CHECKPOINTING", True).train()
    losses = model(draw_inputs((64, 96), (80, 64), objects=(2, 0)))
    sum(losses.values()).backward()
    named = dict(model.named_parameters())
    missing = [name for name, p in named.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not missing
    assert any(p.grad is None for p in named.values())  # the stem and res2 are frozen in both stages


def test_weights_of_the_authors_names_give_the_same_predictions(tmp_path):
    model = small_detr()
    swaps = [("sem_seg_head.bbox_attention", "bbox_attention"), ("sem_seg_head.mask_head", "mask_head")]
    swaps += [("sem_seg_head.", "detr."), ("backbone.stem.conv1.norm", "detr.backbone.0.body.bn1")]
    swaps += [("backbone.stem.", "detr.backbone.0.body.")]
    swaps += [(f"backbone.res{stage + 1}.", f"detr.backbone.0.body.layer{stage}.") for stage in (1, 2, 3, 4)]
    swaps += [(f"conv{number}.norm", f"bn{number}") for number in (1, 2, 3)]
    swaps += [("shortcut.norm", "downsample.1"), ("shortcut.", "downsample.0.")]
    theirs = {}
    for name, tensor in model.state_dict().items():
        for ours, their in swaps:
            name = name.replace(ours, their)
        theirs[name] = tensor.clone()
    del theirs["criterion.empty_weight"]
    torch.save({"model": theirs}, tmp_path / "detr.pth")
    torch.manual_seed(1)
    other = build_model(load_config(CONFIG, SMALL)).eval()
    report = load_weights(other, tmp_path / "detr.pth")
    assert report.has_trained_head and report.share_loaded == 1 and not report.untrained
    inputs = draw_inputs((64, 96))
    (found,), (expected,) = (each.predict_images(inputs) for each in (other, model))
    assert torch.equal(found.mask_logits, expected.mask_logits)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.META_ARCHITECTURE", "MaskFormer"],
            "NAME DetrHead needs MODEL.META_ARCHITECTURE DETR, not Mask",
        ),
        (
            ["MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead"],
            "MODEL.META_ARCHITECTURE DETR needs MODEL.SEM_SEG_HEAD.NAME DetrHead, not MaskFormerHead",
        ),
        (
            ["MODEL.MASK_FORMER.CRITERION_NAME", "SetCriterion"],
            "META_ARCHITECTURE DETR needs MODEL.MASK_FORMER.CRITERION_NAME DetrCriterion, not SetCriterion",
        ),
        (["MODEL.DETR.STAGE", "both"], "MODEL.DETR.STAGE is 'both'; it must be one of boxes, masks"),
        (
            ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 80],
            "CATEGORY_IDS has 133 different ids, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 80",
        ),
        (["MODEL.DETR.NUM_IDS", 200], "NUM_IDS is 200, but the largest of MODEL.DETR.CATEGORY_IDS is 200"),
        (
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4", "res5"]],
            r"IN_FEATURES is \['res4', 'res5'\]; .*DetrHead reads 4 maps, finest first",
        ),
        (["MODEL.MASK_FORMER.NHEADS", 4], "HIDDEN_DIM is 128 and NHEADS 4; .*MODEL.DETR.STAGE masks"),
        (
            ["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True],
            "TEST.SEMANTIC_ON is True, but MODEL.META_ARCHITECTURE DETR makes panoptic and instance output",
        ),
        (
            ["MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.8],
            r"OVERLAP_THRESHOLD is 0.8, but MODEL.META_ARCHITECTURE DETR .*; type \S+OVERLAP_THRESHOLD 0\.0$",
        ),
        (
            ["TEST.PROPOSALS", True],
            "TEST.PROPOSALS is True, but MODEL.META_ARCHITECTURE DETR .* type TEST.PROPOSALS False$",
        ),
        (["MODEL.MASK_FORMER.TEST.LAYER", 6], "TEST.LAYER is 6, but the model makes 2 predictions"),
        (["MODEL.MASK_FORMER.DECODER.DROPOUT", 0.1], "DECODER.DROPOUT is 0.1, .*NAME is DetrHead"),
    ],
)
def test_wrong_configs_are_errors_that_name_both_keys(opts, message):
    with pytest.raises(ValueError, match=message):
        small_detr(*opts).predict(draw_inputs((64, 64)))
