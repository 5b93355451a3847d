"""Checkpoints of ours and folders of transformers, with random weights, small enough for a test."""

import torch
from tiny_checkpoint import METADATA, TINY

from mask2former.config import load_config
from mask2former.engine.build import construct_model

CONFIGS = {
    "resnet": "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml",
    "swin": "coco/panoptic-segmentation/swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "maskformer, resnet": "maskformer/ade20k-150/maskformer_R50_bs16_160k.yaml",
    "maskformer, swin": "maskformer/coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k.yaml",
}
SMALL = {
    **TINY,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": [1, 2, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 2, 3, 4],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
}


def small_config(backbone, **values):
    """Return the config of a small model; `backbone` is one of `CONFIGS`."""
    opts = [part for item in {**SMALL, **values}.items() for part in item]
    return load_config(CONFIGS[backbone], opts)


def randomize(model):
    """Give all parameters and statistics random values, also those that start at zero or one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("empty_weight"):
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith("running_var") else tensor + 0.2 * (noise - 0.5))
    return model


def save_small_checkpoint(path, backbone, metadata=METADATA, **values):
    """Write a checkpoint as a training run leaves it; return its path."""
    torch.manual_seed(0)
    cfg = small_config(backbone, **values)
    model = randomize(construct_model(cfg))
    content = {"model": model.state_dict(), "config": cfg.dump(), "metadata": metadata, "iteration": 9}
    torch.save(content, path)
    return path


def class_and_mask_logits(model, images):
    """Return the last prediction of our model for normalized images (B, 3, H, W)."""
    with torch.no_grad():
        predictions = model.sem_seg_head(model.backbone(images))
        last = predictions.layers[-1]
        return last.class_logits, torch.einsum("bqc,bchw->bqhw", last.mask_embed, predictions.mask_features)
