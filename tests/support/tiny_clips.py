"""A tiny video model, and clips of noise for it."""

import torch
from tiny_runs import tiny_config

from mask2former.structures import Instances
from mask2former.utils.registry import META_ARCH, find_builder

CLASSES = 4
VIDEO = {
    "MODEL__META_ARCHITECTURE": "VideoMaskFormer",
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "VideoMultiScaleMaskedTransformerDecoder",
    "MODEL__MASK_FORMER__TEST__SEMANTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__PANOPTIC_ON": False,
    "MODEL__MASK_FORMER__TEST__INSTANCE_ON": True,
    "MODEL__MASK_FORMER__DEC_LAYERS": 3,
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": CLASSES,
}
IMAGES = {  # the same model for images
    "MODEL__META_ARCHITECTURE": "MaskFormer",
    "MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
}


def tiny_video_model(**changes):
    """Build the model with drawn weights, in evaluation mode."""
    cfg = tiny_config(**{**VIDEO, **changes})
    torch.manual_seed(0)
    build = find_builder(META_ARCH, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    return build(cfg).eval()


def drawn_clip(height, width, tracks=2, num_frames=3, seed=0, **fields):
    """Return a clip of noise, its tracks present in every frame."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(CLASSES, (tracks,), generator=random)
    return {
        "video_id": seed,
        "file_names": [f"{seed}/{frame}.jpg" for frame in range(num_frames)],
        "image": [
            torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
            for _ in range(num_frames)
        ],
        "instances": [
            Instances(
                (height, width),
                gt_classes=classes,
                gt_ids=torch.arange(tracks),
                gt_masks=torch.rand(tracks, height, width, generator=random) > 0.5,
            )
            for _ in range(num_frames)
        ],
        **fields,
    }
