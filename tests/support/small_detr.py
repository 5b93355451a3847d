"""A DETR with few channels and the real structure, weights drawn, and images and targets for it."""

import torch

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.structures import Instances

CONFIG = "comparators/detr/detr_R50_panoptic_bs64_25ep.yaml"
NUM_CLASSES = 133
SMALL = [
    *("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", ()),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.MASK_FORMER.HIDDEN_DIM", 128),
    *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 64, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6),
    *("MODEL.MASK_FORMER.ENC_LAYERS", 2, "MODEL.MASK_FORMER.DEC_LAYERS", 2),
    *("MODEL.MASK_FORMER.DROPOUT", 0.0, "MODEL.MASK_FORMER.THING_IDS", list(range(80))),
]


def small_detr(*opts, config=CONFIG):
    """Return the model in evaluation mode, with drawn weights and statistics of norms."""
    torch.manual_seed(0)
    model = build_model(load_config(config, [*SMALL, *opts])).eval()
    draw_weights(model)
    return model


@torch.no_grad()
def draw_weights(model):
    """Draw all weights such that activations neither vanish nor explode, and queries differ."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("empty_weight"):
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            drawn = (1 + drawn / 4) * (0.3 if "conv3" in name else 1)  # of residual branches
        elif name.endswith("running_var"):
            drawn = 1 + drawn.abs() / 4
        elif tensor.ndim == 1:
            drawn /= 4
        elif "query_embed" not in name:
            drawn *= (2 / tensor[0].numel()) ** 0.5
        tensor.copy_(drawn)


def draw_inputs(*sizes, objects=()):
    """Return images of noise (h, w), with targets of random rectangles and classes, `objects` in each."""
    generator = torch.Generator().manual_seed(2)
    inputs = []
    for number, (height, width) in enumerate(sizes):
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "file_name": f"{number}.jpg"})
        if objects:
            inputs[-1]["instances"] = draw_targets(objects[number], (height, width), seed=number)
    return inputs


def draw_targets(count, size, num_classes=NUM_CLASSES, seed=0):
    """Return random rectangles with random classes."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        (top, bottom), (left, right) = (
            torch.randperm(side, generator=generator)[:2].sort().values for side in size
        )
        mask[top : bottom + 1, left : right + 1] = True
    classes = torch.randint(num_classes, (count,), generator=generator)
    return Instances(size, gt_classes=classes, gt_masks=masks)
