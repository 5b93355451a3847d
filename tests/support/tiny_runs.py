"""Tests of training: a config that takes milliseconds per step, and synthetic images for it."""

import logging
from pathlib import Path

import pytest
import torch
from catalogs import restored_catalogs

from mask2former.config import config_from_text, load_config
from mask2former.data.datasets.shapes import write_shapes
from mask2former.engine.build import build_model
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.train import train
from mask2former.structures import Instances
from mask2former.tools.train import main

__all__ = ["restored_catalogs"]

CONFIG = Path(__file__).parents[2] / "configs/shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml"

OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "FrozenBN",  # batch statistics would depend on the number of processes
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,  # an untrained model has results
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 3,
}


# Changes for `tiny_options`
SMALL_VIT = {"MODEL__VIT__EMBED_DIM": 16, "MODEL__VIT__NUM_HEADS": 2, "MODEL__VIT__POSITION_GRID": 4}
EOMT = {
    **SMALL_VIT,
    "MODEL__META_ARCHITECTURE": "EoMT",
    "MODEL__BACKBONE__NAME": "EomtBackbone",
    "MODEL__SEM_SEG_HEAD__NAME": "EomtHead",
    "MODEL__VIT__DEPTH": 3,
    "MODEL__EOMT__NUM_BLOCKS": 2,
}


def tiny_options(**changes):
    """Return `KEY VALUE ...` as on a command line; in a change's name __ stands for the dot."""
    options = {**OPTIONS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [str(item) for pair in options.items() for item in pair]


def tiny_config(**changes):
    """Return the config for synthetic shapes, made tiny."""
    return load_config(CONFIG, tiny_options(**changes))


def tiny_file(*typed, **changes):
    """The small config as from a file, so that only the `KEY VALUE` pairs `typed` count as typed."""
    return config_from_text(tiny_config(**changes).dump(), "tiny.yaml", typed)


def run_train(folder, *flags, **changes):
    """Run `mask2former train` on the tiny config in this process; return its exit code."""
    return main(["--config-file", str(CONFIG), *flags, *tiny_options(OUTPUT_DIR=folder, **changes)])


def save_ground_finder(path):
    """Save a checkpoint whose queries all find class 3, the ground, in most pixels: metrics are above 0.

    Return its config and model.
    """
    torch.manual_seed(0)
    cfg = tiny_config()
    model = build_model(cfg).eval()
    predictor, features = model.sem_seg_head.predictor, model.sem_seg_head.pixel_decoder.mask_features
    with torch.no_grad():
        predictor.class_embed.bias[3] += 8
        predictor.mask_embed.layers[-1].bias += 0.3
        features.bias += 0.3
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, path)
    return cfg, model


def train_resolved(cfg, run=None):
    """Train on a config of files and typed keys, into its OUTPUT_DIR; the results of the final evaluation."""
    return train(resolve_config(cfg), run or Run(run_folder(cfg.OUTPUT_DIR)))


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """Write a few synthetic images, and set DETECTRON2_DATASETS for the session."""
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root, {"train": 6, "val": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


def random_sample(number, objects, side=64):
    """Return an image of noise with `objects` random boxes."""
    generator = torch.Generator().manual_seed(number)
    masks = torch.zeros(objects, side, side, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        mask[top : top + side // 3, left : left + side // 3] = True
    classes = torch.randint(0, 5, (objects,), generator=generator)
    return {
        "file_name": f"{number}.jpg",
        "image": torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8),
        "height": side,
        "width": side,
        "instances": Instances((side, side), gt_classes=classes, gt_masks=masks),
        "seed": number,
    }


@pytest.fixture(autouse=True)
def restored_log():
    """Restore the logging handlers, which a run changes."""
    log = logging.getLogger("mask2former")
    handlers, level = list(log.handlers), log.level
    yield
    for handler in log.handlers:
        if handler not in handlers:
            handler.close()
    log.handlers, log.level, log.propagate = handlers, level, True
