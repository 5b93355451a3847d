"""Keys and models of Detectron2 that have no effect here, keys as prefixes with the reason.

A key is listed by its full name, or by the start of its name, which ends with a dot or an underscore. Such a
key is accepted with a warning; there is none for the values of `PUBLISHED`, which the published files set.
"""

from typing import Any

# Models of Detectron2 that it trains on our data, with `--host detectron2`; they read its keys.
HOST_MODELS = ("GeneralizedRCNN",)

_NO_BOXES = "Mask2Former has no box or keypoint stage"
_CLASS_COUNT = "Mask2Former has no box stage; the number of classes is MODEL.SEM_SEG_HEAD.NUM_CLASSES"
_OTHER_HEAD = "it belongs to another segmentation head"
_NO_DILATION = "the ResNet has no dilation"
_NO_DEFORMABLE = "the ResNet has no deformable convolution"
_OTHER_SOLVER = "no optimizer or schedule of this project uses it"
_UNREAD = "the published model does not read it"

IGNORED: dict[str, str] = {
    "MODEL.LOAD_PROPOSALS": _NO_BOXES,
    "MODEL.MASK_ON": _NO_BOXES,
    "MODEL.KEYPOINT_ON": _NO_BOXES,
    "MODEL.PROPOSAL_GENERATOR.": _NO_BOXES,
    "MODEL.ANCHOR_GENERATOR.": _NO_BOXES,
    "MODEL.RPN.": _NO_BOXES,
    "MODEL.ROI_": _NO_BOXES,
    "MODEL.ROI_HEADS.NUM_CLASSES": _CLASS_COUNT,
    "MODEL.RETINANET.": _NO_BOXES,
    "MODEL.RETINANET.NUM_CLASSES": _CLASS_COUNT,
    "MODEL.FPN.": _OTHER_HEAD,
    "MODEL.PANOPTIC_FPN.": _OTHER_HEAD,
    "MODEL.PANOPTIC_FPN.COMBINE.": "panoptic results follow MODEL.MASK_FORMER.TEST",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": _OTHER_HEAD,
    "MODEL.SEM_SEG_HEAD.PROJECT_": _OTHER_HEAD,
    "MODEL.SEM_SEG_HEAD.ASPP_": _OTHER_HEAD,
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": _OTHER_HEAD,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": _UNREAD,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_": _UNREAD,
    "MODEL.RESNETS.DEFORM_": _NO_DEFORMABLE,
    "MODEL.RESNETS.RES4_DILATION": _NO_DILATION,
    "MODEL.RESNETS.RES5_DILATION": _NO_DILATION,
    "INPUT.MASK_FORMAT": "polygons, RLE and bitmaps are recognized as they are read",
    "DATASETS.PROPOSAL_FILES_": _NO_BOXES,
    "DATASETS.PRECOMPUTED_PROPOSAL_": _NO_BOXES,
    "DATALOADER.ASPECT_RATIO_GROUPING": "a batch is the next samples of one stream shared by all processes",
    "SOLVER.BASE_LR_END": _OTHER_SOLVER,
    "SOLVER.NESTEROV": _OTHER_SOLVER,
    "SOLVER.NUM_DECAYS": _OTHER_SOLVER,
    "SOLVER.RESCALE_INTERVAL": _OTHER_SOLVER,
    "SOLVER.BIAS_LR_FACTOR": _OTHER_SOLVER,
    "SOLVER.WEIGHT_DECAY_BIAS": _OTHER_SOLVER,
    "SOLVER.REFERENCE_WORLD_SIZE": "SOLVER.IMS_PER_BATCH holds for any number of processes",
    "TEST.KEYPOINT_OKS_SIGMAS": _NO_BOXES,
    "TEST.PRECISE_BN.": "batch-norm statistics are those of training",
    "GLOBAL.": "it is Detectron2's scratch space",
    "CUDNN_BENCHMARK": "cuDNN's own choice of algorithms is kept",
    "FLOAT32_PRECISION": "float32 is exact; SOLVER.AMP sets the precision of training",
}

# Values that cause no warning. The first is the default: Detectron2's own node gets it if it lacks the key,
# since it refuses unknown keys.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "MODEL.MASK_ON": (False, True),
    "MODEL.SWIN.USE_CHECKPOINT": (False,),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": ("hard_pixel_mining",),
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": (["res2"],),
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": ([48],),
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": (256,),
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": ([6, 12, 18],),
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": (0.1,),
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": (False,),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4,),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": (4,),
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": (8,),
    "MODEL.RESNETS.RES4_DILATION": (1,),
    "MODEL.RESNETS.RES5_DILATION": (1,),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False, False, False, False],),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "DATALOADER.ASPECT_RATIO_GROUPING": (True, False),
    "CUDNN_BENCHMARK": (False,),
    "FLOAT32_PRECISION": ("",),
}

# Keys of `PUBLISHED` of which another value means another model, whose weights would load all the same.
REFUSED = ("MODEL.RESNETS.RES4_DILATION", "MODEL.RESNETS.RES5_DILATION", "MODEL.RESNETS.DEFORM_ON_PER_STAGE")

# Published name of a switch -> the key that True switches on; False leaves that key as it is.
ALIASES = {"MODEL.SWIN.USE_CHECKPOINT": "MODEL.ACTIVATION_CHECKPOINTING"}

# Keys of earlier releases -> what to use.
REMOVED = {"SOLVER.REFERENCE_BATCH": "SOLVER.ACCUMULATION_STEPS"}


def ignored_reason(key: str) -> str | None:
    """Return why `key` has no effect, by the longest entry that fits it; None if it is not an ignored key."""
    fitting = [name for name in IGNORED if key == name or (name[-1] in "._" and key.startswith(name))]
    return IGNORED[max(fitting, key=len)] if fitting else None


def check_refused(key: str, value: Any, source: str = "") -> None:
    """Raise ValueError for a value of a key of `REFUSED` that means another model; `source` set it."""
    if key in REFUSED and not _is_published(key, value):
        where = f"{source}: " if source else ""
        raise ValueError(f"{where}{key} = {value!r} is not supported: {ignored_reason(key)}")


def warning_about(key: str, value: Any) -> str | None:
    """Return the warning that an ignored key deserves; None for the values of published files."""
    return None if _is_published(key, value) else f"{key} = {value!r} has no effect: {ignored_reason(key)}"


def _is_published(key: str, value: Any) -> bool:
    return (list(value) if isinstance(value, tuple) else value) in PUBLISHED.get(key, ())
