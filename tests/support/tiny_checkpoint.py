"""A model small enough to build in a test, and the checkpoint that a training run of it would leave."""

import torch

from mask2former.config import load_config, with_values
from mask2former.engine.build import build_model

NAMES = ["circle", "square", "grass", "sand"]
METADATA = {
    "thing_classes": NAMES[:2],
    "stuff_classes": NAMES,
    "stuff_colors": [[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]],
    "thing_ids": [0, 1],
}
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(NAMES),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 4,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.THING_IDS": [0, 1],
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
}


def tiny_config():
    """COCO's panoptic config, made tiny, for four classes."""
    opts = [part for item in TINY.items() for part in item]
    return load_config("coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml", opts)


def save_tiny_checkpoint(path, confidence=8.0, tasks=()):
    """A checkpoint with config and class names; `confidence` is added to the logits of circle and grass.

    With `tasks` it is a model for several, whose embeddings of tasks are drawn.
    """
    torch.manual_seed(0)
    cfg = with_values(tiny_config(), {"SOLVER.TASKS": tasks}, "the test")
    model = build_model(cfg)
    decoder = model.sem_seg_head.predictor
    with torch.no_grad():
        decoder.class_embed.bias[[0, 2]] += confidence
        decoder.class_embed.weight *= 20  # so that queries differ
        for embedding in (decoder.task_feat, decoder.task_embed) if tasks else ():
            embedding.weight.normal_()
    torch.save(
        {"model": model.state_dict(), "config": cfg.dump(), "metadata": METADATA, "iteration": 9}, path
    )
    return path
