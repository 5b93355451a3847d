"""K-Net's pixel features and head: shapes, first kernels, which class a kernel may have, wrong configs."""

import pytest
import torch
from torch.nn import functional as F

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.modeling.knet.head import KernelHead
from mask2former.modeling.knet.pyramid import KernelPyramid
from mask2former.structures import ShapeSpec

SMALL = "shapes/panoptic-segmentation/knet_R18_bs8_shapes.yaml"
MASK2FORMER = "shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"
SEMANTIC_ALONE = ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", False, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False]
WIDTH, CLASSES, THINGS, KERNELS = 32, 5, (0, 3), 4


def pyramid(norm="GN"):
    torch.manual_seed(0)
    shapes = {f"res{i}": ShapeSpec(8 * i, 2**i) for i in (2, 3, 4, 5)}
    return KernelPyramid(input_shape=shapes, width=WIDTH, norm=norm)


def maps(height, width):
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    return {f"res{i}": torch.randn(2, 8 * i, *size) for i, size in zip((2, 3, 4, 5), sides, strict=True)}


def kernel_head(things=THINGS, stages=2):
    torch.manual_seed(0)
    return KernelHead(
        width=WIDTH,
        num_classes=CLASSES,
        thing_ids=things,
        num_kernels=KERNELS,
        num_stages=stages,
        norm="GN",
        num_heads=2,
        dim_feedforward=16,
    )


def features():
    torch.manual_seed(2)
    return [torch.randn(2, WIDTH, 6, 7) for _ in range(2)]


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (33, 40)])
def test_both_features_are_at_stride_8_for_any_size(size):
    found = pyramid()(maps(*size))
    expected = tuple(-(-side // 8) for side in size)
    assert [tuple(x.shape) for x in found] == [(2, WIDTH, *expected)] * 2


def literal_pyramid(module, features):
    """Compute both features step by step."""
    laterals = [conv(features[f"res{i}"]) for i, conv in zip((2, 3, 4, 5), module.lateral_convs, strict=True)]
    p5 = laterals[3]
    p4 = laterals[2] + F.interpolate(p5, scale_factor=2)
    p3 = laterals[1] + F.interpolate(p4, scale_factor=2)
    p2 = laterals[0] + F.interpolate(p3, scale_factor=2)
    p2, p3, p4, p5 = (conv(p) for conv, p in zip(module.fpn_convs, (p2, p3, p4, p5), strict=True))
    height, width = p5.shape[2:]
    for row in range(height):
        for column in range(width):
            for channel in range(WIDTH):  # half of the channels for y, then half for x
                axis, place = divmod(channel, WIDTH // 2)
                share = (column + 1) / width if axis else (row + 1) / height
                angle = torch.tensor(share * 2 * torch.pi / 10000 ** (place // 2 * 2 / (WIDTH // 2)))
                p5[:, channel, row, column] += angle.cos() if place % 2 else angle.sin()
    levels = module.convs_all_levels

    def enlarge(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    total = levels[0].conv0(p2) + levels[1].conv0(p3)
    total = total + levels[2].conv1(enlarge(levels[2].conv0(p4)))
    total = total + levels[3].conv2(enlarge(levels[3].conv1(enlarge(levels[3].conv0(p5)))))
    return [module.conv_pred(total), module.aux_convs[0](total)]


def test_the_features_equal_a_computation_step_by_step():
    module = pyramid().eval()
    with torch.no_grad():
        for module_ in module.modules():
            if hasattr(module_, "weight") and module_.weight.dim() > 1:
                torch.nn.init.normal_(module_.weight, std=0.1)
        found, expected = module(maps(64, 96)), literal_pyramid(module, maps(64, 96))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_first_kernels_are_those_of_the_convolutions_and_instances_add_their_group():
    head, (instances, semantic) = kernel_head(), features()
    given = []
    head.stages[0].register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    found = head([instances, semantic])
    kernels, masks, x = given
    loc, seg = head.loc_convs(instances), head.seg_convs(semantic)
    first = head.init_kernels(loc)
    torch.testing.assert_close(found.first_masks, first)
    torch.testing.assert_close(found.seg_logits, head.conv_seg(seg))
    torch.testing.assert_close(masks, torch.cat([first, head.conv_seg(seg)[:, [1, 2, 4]]], 1))
    group = torch.einsum("bnhw,bchw->bnc", (first.sigmoid() > 0.5).float(), loc + seg)
    torch.testing.assert_close(kernels[:, :KERNELS], head.init_kernels.weight[:, :, 0, 0] + group)
    torch.testing.assert_close(kernels[0, KERNELS:], head.conv_seg.weight[[1, 2, 4], :, 0, 0])
    torch.testing.assert_close(x, torch.cat([loc + seg, torch.ones(2, 1, 6, 7)], 1))


def test_each_stage_reads_the_masks_and_kernels_of_the_one_before():
    head = kernel_head()
    given = []
    head.stages[1].register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    results = []
    head.stages[0].register_forward_hook(lambda _, inputs, result: results.append(result))
    found = head(features())
    torch.testing.assert_close(given[0], results[0][0])
    torch.testing.assert_close(given[1], found.small_masks(0))


def test_an_instance_kernel_may_be_any_thing_and_a_stuff_kernel_its_own_class():
    head = kernel_head()
    things = [True, False, False, True, False]
    stuff = [[False, True, False, False, False], [False, False, True, False, False], [False] * 4 + [True]]
    assert head.allowed.tolist() == [things] * KERNELS + stuff
    predictions = head(features())
    sizes = [((48, 56), (48, 56), (48, 56))] * 2
    for image in predictions.of_images(sizes):
        assert image.mask_logits.shape == (KERNELS + 3, 12, 14) and image.num_classes == CLASSES
        assert torch.equal(image.probabilities[:, :-1] > 0, head.allowed)
        assert not image.probabilities[:, -1].any()


@pytest.mark.parametrize("things", [(), range(CLASSES)], ids=["no things", "things alone"])
def test_classes_may_be_all_stuff_or_all_things(things):
    predictions = kernel_head(things)(features())
    assert predictions.layers[-1].class_logits.shape == (2, KERNELS + CLASSES - len(things), CLASSES)


def test_masks_are_enlarged_to_stride_4():
    predictions = kernel_head()(features())
    expected = F.interpolate(predictions.small_masks(0), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(predictions.mask_logits(0), expected)


def test_sums_over_masks_are_in_float32_under_autocast():
    head = kernel_head()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = head(features())
    assert predictions.mask_features.dtype == predictions.layers[0].class_logits.dtype == torch.float32


def build(file, *opts):
    options = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", (), *opts]
    return build_model(load_config(file, options))


@pytest.mark.parametrize(
    ("file", "opts", "message"),
    [
        (
            SMALL,
            ["MODEL.MASK_FORMER.CRITERION_NAME", "SetCriterion"],
            "SEM_SEG_HEAD.NAME KNetHead and MODEL.MASK_FORMER.CRITERION_NAME KNetCriterion need each other, "
            "but they are KNetHead and SetCriterion",
        ),
        (
            MASK2FORMER,
            ["MODEL.MASK_FORMER.CRITERION_NAME", "KNetCriterion"],
            "CRITERION_NAME KNetCriterion need each other, but they are MaskFormerHead and KNetCriterion",
        ),
        (
            MASK2FORMER,
            ["MODEL.SEM_SEG_HEAD.NAME", "KNetHead"],
            "NAME KNetHead and .* need each other, but they are KNetHead and SetCriterion",
        ),
        (
            SMALL,
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", *SEMANTIC_ALONE],
            "SemanticSegmentor needs a head that gives each pixel a class, not .*SEM_SEG_HEAD.NAME KNetHead",
        ),
        (
            SMALL,
            ["MODEL.MASK_FORMER.LOSS_ON", "points"],
            "LOSS_ON is 'points', but MODEL.MASK_FORMER.CRITERION_NAME KNetCriterion needs 'masks'",
        ),
        (
            SMALL,
            ["MODEL.MASK_FORMER.DEEP_SUPERVISION", False],
            "DEEP_SUPERVISION is False, but .* KNetCriterion needs True",
        ),
        (
            SMALL,
            ["MODEL.MASK_FORMER.DECODER.ATTENTION", "pooling"],
            "DECODER.ATTENTION is 'pooling', .*, but MODEL.SEM_SEG_HEAD.NAME is KNetHead",
        ),
        (SMALL, ["MODEL.MASK_FORMER.DEC_LAYERS", 0], "DEC_LAYERS is 0; it must be at least 1"),
        (SMALL, ["MODEL.MASK_FORMER.NHEADS", 5], "width of 64 cannot be shared by 5 attention heads"),
        (SMALL, ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 48], "'GN' has 32 groups, which do not divide 48"),
        (SMALL, ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]], "a pyramid needs at least two maps"),
        (SMALL, ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5", "p6"]], "IN_FEATURES has .*p6"),
        (SMALL, ["MODEL.MASK_FORMER.THING_IDS", [7]], "THING_IDS: .7. is outside the model's 5 classes"),
    ],
)
def test_combinations_that_make_no_sense_are_errors_that_name_the_keys(file, opts, message):
    with pytest.raises(ValueError, match=message):
        build(file, *opts)


@pytest.mark.parametrize(
    ("file", "parameters"),
    [
        ("knet_R50_bs16_36ep", 37_483_732),  # and 53,120 of the backbone's norms, which are constants here
        ("knet_swin_large_IN21k_224_bs32_36ep", 208_781_224),
    ],
)
def test_parameters(file, parameters):
    """R50: 23,454,912 of the backbone, 7,608,832 of the pyramid, 6,419,988 of kernels and stages."""
    model = build_model(load_config(f"comparators/knet/{file}.yaml", ["MODEL.DEVICE", "meta"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
