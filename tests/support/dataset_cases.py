"""The datasets of the paper by task, each with its published config made tiny, and their synthetic files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from published_configs import PUBLISHED as ALL_PUBLISHED
from published_configs import is_experiment
from script_runs import run
from synthetic_datasets import ade20k, ade20k_full, cityscapes, coco, coco_stuff, lvis, mapillary
from tiny_runs import OPTIONS

COCO_R50 = "maskformer2_R50_bs16_50ep.yaml"
ADE20K_R50 = "maskformer2_R50_bs16_160k.yaml"
CITYSCAPES_R50 = "maskformer2_R50_bs16_90k.yaml"
MAPILLARY_R50 = "maskformer2_R50_bs16_300k.yaml"

PUBLISHED = list(filter(is_experiment, ALL_PUBLISHED))
ALL_METRICS = {"sem_seg": "mIoU", "segm": "AP", "panoptic_seg": "PQ"}
TINY = {
    **{key: value for key, value in OPTIONS.items() if key != "MODEL.RESNETS.NORM"},
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 64,
    "INPUT.MIN_SIZE_TRAIN": [48, 64],
    "INPUT.CROP.SIZE": [40, 56],
    "INPUT.SIZE_DIVISIBILITY": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "SOLVER.MAX_ITER": 2,
    "DATALOADER.NUM_WORKERS": 0,
}


class Tree(NamedTuple):
    """How the files of a dataset are made: `draw` writes them as downloaded, a script may prepare them."""

    draw: Callable[[Path], None]
    script: str | None = None


TREES = {
    "ade20k": Tree(ade20k.draw, "prepare_ade20k"),
    "ade20k_full": Tree(ade20k_full.draw, "prepare_ade20k_full"),
    "cityscapes": Tree(cityscapes.draw, "prepare_cityscapes"),
    "coco": Tree(coco.draw, "prepare_coco"),
    "coco_stuff": Tree(coco_stuff.draw, "prepare_coco_stuff"),
    "lvis": Tree(lvis.draw),
    "mapillary": Tree(functools.partial(mapillary.draw, layout="v1.2")),
    "mapillary_flat": Tree(functools.partial(mapillary.draw, layout="flat")),
    "mapillary_v2": Tree(functools.partial(mapillary.draw, layout="v1.2")),  # the same files
}


class Case(NamedTuple):
    """A dataset and a task of it.

    `tasks` are those that the published config measures. `names` are the datasets to train and test on, if
    the config is that of another dataset.
    """

    tree: str
    task: str
    config: str
    tasks: tuple[str, ...]
    names: tuple[str, str] | None = None

    def __str__(self):
        return f"{self.tree}-{self.task}"

    @property
    def published(self):
        """Return all published configs of the task, or only `config` if it is that of another dataset."""
        if self.names or self.tree == "mapillary_flat":  # only the data differs
            return [self.config]
        dataset, task, _ = self.config.split("/")
        return [name for name in PUBLISHED if name.startswith(f"{dataset}/{task}/")]

    def options(self, **changes):
        """Return the command line that makes the config tiny; names of changes have __ for the dot."""
        options: dict[str, object] = dict(TINY)
        if self.names:
            options |= {"DATASETS.TRAIN": self.names[:1], "DATASETS.TEST": self.names[1:]}
        options |= {name.replace("__", "."): value for name, value in changes.items()}
        return [str(item) for pair in options.items() for item in pair]


SEMANTIC, INSTANCE, PANOPTIC = ("sem_seg",), ("segm",), ("sem_seg", "segm", "panoptic_seg")
SEGMENTS = ("sem_seg", "panoptic_seg")
ADE20K_SEMANTIC = f"ade20k/semantic-segmentation/{ADE20K_R50}"
COCO_INSTANCE = f"coco/instance-segmentation/{COCO_R50}"
MAPILLARY_SEMANTIC = f"mapillary-vistas/semantic-segmentation/{MAPILLARY_R50}"
MAPILLARY_PANOPTIC = "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml"
FULL = "ade20k_full_sem_seg_train", "ade20k_full_sem_seg_val"
COCO_STUFF = "coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg"
MAPILLARY_V2 = "mapillary_vistas_v2_sem_seg_train", "mapillary_vistas_v2_sem_seg_val"
MAPILLARY_V2_PANOPTIC = "mapillary_vistas_v2_panoptic_train", "mapillary_vistas_v2_panoptic_val"
LVIS = "lvis_v1_train", "lvis_v1_val"

CASES = [
    Case("coco", "panoptic", f"coco/panoptic-segmentation/{COCO_R50}", PANOPTIC),
    Case("coco", "instance", COCO_INSTANCE, INSTANCE),
    Case("ade20k", "semantic", ADE20K_SEMANTIC, SEMANTIC),
    Case("ade20k", "instance", f"ade20k/instance-segmentation/{ADE20K_R50}", INSTANCE),
    Case("ade20k", "panoptic", f"ade20k/panoptic-segmentation/{ADE20K_R50}", PANOPTIC),
    Case("ade20k_full", "semantic", ADE20K_SEMANTIC, SEMANTIC, FULL),
    Case("cityscapes", "semantic", f"cityscapes/semantic-segmentation/{CITYSCAPES_R50}", SEMANTIC),
    Case("cityscapes", "instance", f"cityscapes/instance-segmentation/{CITYSCAPES_R50}", INSTANCE),
    Case("cityscapes", "panoptic", f"cityscapes/panoptic-segmentation/{CITYSCAPES_R50}", PANOPTIC),
    Case("mapillary", "semantic", MAPILLARY_SEMANTIC, SEMANTIC),
    Case("mapillary", "panoptic", MAPILLARY_PANOPTIC, SEGMENTS),
    Case("mapillary_flat", "semantic", MAPILLARY_SEMANTIC, SEMANTIC),
    Case("mapillary_flat", "panoptic", MAPILLARY_PANOPTIC, SEGMENTS),
    Case("mapillary_v2", "semantic", MAPILLARY_SEMANTIC, SEMANTIC, MAPILLARY_V2),
    Case("mapillary_v2", "panoptic", MAPILLARY_PANOPTIC, SEGMENTS, MAPILLARY_V2_PANOPTIC),
    Case("coco_stuff", "semantic", ADE20K_SEMANTIC, SEMANTIC, COCO_STUFF),
    Case("lvis", "instance", COCO_INSTANCE, INSTANCE, LVIS),
]

JOINT_CASES = [
    Case("coco", "joint", f"coco/joint-segmentation/{COCO_R50}", PANOPTIC),
    Case("ade20k", "joint", f"ade20k/joint-segmentation/{ADE20K_R50}", PANOPTIC),
    Case("cityscapes", "joint", f"cityscapes/joint-segmentation/{CITYSCAPES_R50}", PANOPTIC),
]

# MaskFormer's configs, for the runs alone: what is read and measured is tested with the others
MASKFORMER_CASES = [
    Case(tree, task, f"maskformer/{config}.yaml", tasks)
    for tree, task, config, tasks in [
        ("ade20k", "semantic", "ade20k-150/maskformer_R50_bs16_160k", SEMANTIC),
        ("ade20k", "panoptic", "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k", SEGMENTS),
        ("ade20k_full", "semantic", "ade20k-full-847/maskformer_R50_bs16_200k", SEMANTIC),
        ("cityscapes", "semantic", "cityscapes-19/maskformer_R101_bs16_90k", SEMANTIC),
        ("coco", "panoptic", "coco-panoptic/maskformer_panoptic_R50_bs64_554k", SEGMENTS),
        ("coco_stuff", "semantic", "coco-stuff-10k-171/maskformer_R50_bs32_60k", SEMANTIC),
        ("mapillary", "semantic", "mapillary-vistas-65/maskformer_R50_bs16_300k", SEMANTIC),
    ]
]

BY_NAME = {str(case): case for case in CASES}
RUNS = [(case, config) for case in CASES for config in case.published]
MASKFORMER_RUNS = [(case, config) for case in MASKFORMER_CASES for config in case.published]


def each_of(runs: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    """Return the parametrization by `case` and `config`."""
    ids = [f"{case}-{config.rpartition('/')[2].removesuffix('.yaml')}" for case, config in runs]
    return pytest.mark.parametrize(("case", "config"), runs, ids=ids)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Return a function from the name of a dataset to the folder that holds it, made and prepared once."""

    @functools.cache
    def root(tree):
        folder, (draw, script) = tmp_path_factory.mktemp(tree), TREES[tree]
        draw(folder)
        if script:
            run(script, folder)
        return folder

    return root
