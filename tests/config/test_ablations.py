"""The rows of the paper's ablation tables: what each adds to the R50 experiment of its task."""

import functools

import pytest
import torch

from mask2former.config import config_names, load_config, resolve_config_file
from mask2former.config.yaml_files import read_layers
from mask2former.modeling.mask_former import build_mask_former

R50 = {
    "coco_instance": "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "coco_panoptic": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "ade20k_semantic": "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
}  # task -> the row "Mask2Former (ours)" of all tables
MASKFORMERS = ("ablations/table11/maskformer_own", "ablations/maskformer_")  # they start from its files
EPOCH = 7375  # steps of 16 images

WIDTH, HEADS, QUERIES, LAYERS, FEEDFORWARD = 256, 8, 100, 9, 2048
PROJECTION, NORM = WIDTH * WIDTH + WIDTH, 2 * WIDTH
LAYER = 2 * (4 * PROJECTION + NORM) + (2 * WIDTH * FEEDFORWARD + FEEDFORWARD + WIDTH + NORM)
SMCA_CENTER = PROJECTION + 2 * (WIDTH + 1)  # two linear layers that end in x and y
SMCA_SHIFT_AND_SCALE = 2 * HEADS * 2 * (WIDTH + 1)

ROWS = {
    "table4b/zero_queries": -QUERIES * WIDTH,
    "table4b/self_attention_first": 0,
    "table4b/dropout": 0,
    "table4b/all_three": -QUERIES * WIDTH,
    "table4c/cross_attention": 0,
    "table4c/smca": LAYERS * (SMCA_CENTER + SMCA_SHIFT_AND_SCALE),
    "table4c/mask_pooling": -LAYERS * 3 * PROJECTION,
    "table4d/stride32": -2 * WIDTH,
    "table4d/stride16": -2 * WIDTH,
    "table4d/stride8": -2 * WIDTH,
    "table4d/concatenated": 0,
    "table5/match_masks_loss_masks": 0,
    "table5/match_masks_loss_points": 0,
    "table5/match_points_loss_masks": 0,
    **{f"table10a/queries_{queries}": (queries - QUERIES) * 2 * WIDTH for queries in (50, 200, 300, 1000)},
    "table10b/unsupervised_queries": 0,
    **{f"figure2/layers_{layers}": (layers - LAYERS) * LAYER for layers in (1, 3, 6)},
}  # row -> how many parameters it has more than Mask2Former


@functools.cache
def count_parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_mask_former(load_config(config)).parameters())


def values_and_bases(config):
    *bases, (_, own) = read_layers(resolve_config_file(config))
    return own, [path for path, _ in bases]


@pytest.mark.parametrize("task", R50)
@pytest.mark.parametrize("row", ROWS)
def test_parameters(row, task):
    assert count_parameters(f"ablations/{row}_{task}.yaml") - count_parameters(R50[task]) == ROWS[row]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ("maskformer_own_coco_panoptic", 45_012_038),
        ("maskformer_mask2former_parameters_coco_panoptic", 45_012_038),
        ("maskformer_own_coco_instance", 45_012_038 - (133 - 80) * (WIDTH + 1)),
        ("maskformer_mask2former_parameters_coco_instance", 45_012_038 - (133 - 80) * (WIDTH + 1)),
        ("maskformer_mask2former_parameters_ade20k_semantic", 41_254_743),
    ],
)
def test_parameters_of_maskformer(config, parameters):
    """The counts of the published models, and without the classes that COCO's instances lack."""
    assert count_parameters(f"ablations/table11/{config}.yaml") == parameters


@pytest.mark.parametrize("queries", [20, 50, 150, 300, 1000])
def test_parameters_of_maskformer_with_other_numbers_of_queries(queries):
    """They start from zero, so that each has its position alone."""
    config = f"ablations/maskformer_queries/queries_{queries}_ade20k_semantic.yaml"
    assert count_parameters(config) == 41_254_743 + (queries - QUERIES) * WIDTH


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("ablations/")])
def test_a_row_reads_the_files_of_its_task(name):
    own, bases = values_and_bases(name)
    model, backbone, dataset = (path.stem for path in bases)
    assert own
    assert backbone == "R50"
    assert name.endswith(f"_{dataset.removesuffix('_detr')}.yaml")
    assert (model == "maskformer2") != name.startswith(MASKFORMERS)


@pytest.mark.parametrize("task", ["coco_instance", "coco_panoptic"])
@pytest.mark.parametrize("epochs", [12, 25, 50, 100])
def test_schedules_of_figure_4_are_the_usual_one_stretched(epochs, task):
    usual = load_config(R50[task])
    length, steps = epochs * EPOCH, tuple(round(step * epochs / 50) for step in usual.SOLVER.STEPS)
    names = [f"standard_{epochs}ep", *([f"lsj_{epochs}ep"] if epochs != 50 else [])]
    for name in names:
        cfg = load_config(f"ablations/figure4/{name}_{task}.yaml")
        assert length == cfg.SOLVER.MAX_ITER
        assert steps == cfg.SOLVER.STEPS
        jitters = cfg.INPUT.DATASET_MAPPER_NAME == usual.INPUT.DATASET_MAPPER_NAME
        assert (jitters, cfg.INPUT.CROP.ENABLED) == (("lsj" in name), ("standard" in name))
