"""Keys of Detectron2 that are accepted and have no effect here."""

from typing import Any, NamedTuple


class IgnoredKey(NamedTuple):
    """A key that is accepted and read by nothing."""

    default: Any
    reason: str
    published: tuple[Any, ...] = ()  # values of published configs: no warning for these either
    refused: bool = False  # another value would mean another model, for which weights would load all the same


def _section(prefix: str, reason: str, defaults: dict[str, Any]) -> dict[str, IgnoredKey]:
    """The keys below `prefix`, all ignored for one reason."""
    return {f"{prefix}.{name}": IgnoredKey(value, reason) for name, value in defaults.items()}


_NO_BOXES = "Mask2Former has no box or keypoint stage"
_COUNT = "Mask2Former has no box stage; the number of classes is MODEL.SEM_SEG_HEAD.NUM_CLASSES"
_OTHER_HEAD = "it belongs to another segmentation head"
_DEEPLAB = "it belongs to DeepLab's ResNet"
_NO_DILATION = "the ResNet has no dilation"
_NO_DEFORMABLE = "the ResNet has no deformable convolution"
_OTHER_SOLVER = "no optimizer or schedule offered here uses it"
_UNREAD = "the published model does not read it"


IGNORED: dict[str, IgnoredKey] = {
    **_section("MODEL", _NO_BOXES, {"LOAD_PROPOSALS": False, "MASK_ON": False, "KEYPOINT_ON": False}),
    **_section(
        "MODEL.FPN", _OTHER_HEAD, {"IN_FEATURES": [], "OUT_CHANNELS": 256, "NORM": "", "FUSE_TYPE": "sum"}
    ),
    **_section("MODEL.PROPOSAL_GENERATOR", _NO_BOXES, {"NAME": "RPN", "MIN_SIZE": 0}),
    **_section(
        "MODEL.ANCHOR_GENERATOR",
        _NO_BOXES,
        {
            "NAME": "DefaultAnchorGenerator",
            "SIZES": [[32, 64, 128, 256, 512]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "ANGLES": [[-90, 0, 90]],
            "OFFSET": 0.0,
        },
    ),
    **_section(
        "MODEL.RPN",
        _NO_BOXES,
        {
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["res4"],
            "BOUNDARY_THRESH": -1,
            "IOU_THRESHOLDS": [0.3, 0.7],
            "IOU_LABELS": [0, -1, 1],
            "BATCH_SIZE_PER_IMAGE": 256,
            "POSITIVE_FRACTION": 0.5,
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
            "SMOOTH_L1_BETA": 0.0,
            "LOSS_WEIGHT": 1.0,
            "PRE_NMS_TOPK_TRAIN": 12000,
            "PRE_NMS_TOPK_TEST": 6000,
            "POST_NMS_TOPK_TRAIN": 2000,
            "POST_NMS_TOPK_TEST": 1000,
            "NMS_THRESH": 0.7,
            "CONV_DIMS": [-1],
        },
    ),
    **_section("MODEL.ROI_HEADS", _COUNT, {"NUM_CLASSES": 80}),
    **_section(
        "MODEL.ROI_HEADS",
        _NO_BOXES,
        {
            "NAME": "Res5ROIHeads",
            "IN_FEATURES": ["res4"],
            "IOU_THRESHOLDS": [0.5],
            "IOU_LABELS": [0, 1],
            "BATCH_SIZE_PER_IMAGE": 512,
            "POSITIVE_FRACTION": 0.25,
            "SCORE_THRESH_TEST": 0.05,
            "NMS_THRESH_TEST": 0.5,
            "PROPOSAL_APPEND_GT": True,
        },
    ),
    **_section(
        "MODEL.ROI_BOX_HEAD",
        _NO_BOXES,
        {
            "NAME": "",
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
            "SMOOTH_L1_BETA": 0.0,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_FC": 0,
            "FC_DIM": 1024,
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
            "CLS_AGNOSTIC_BBOX_REG": False,
            "TRAIN_ON_PRED_BOXES": False,
            "USE_FED_LOSS": False,
            "USE_SIGMOID_CE": False,
            "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
            "FED_LOSS_NUM_CLASSES": 50,
        },
    ),
    **_section(
        "MODEL.ROI_BOX_CASCADE_HEAD",
        _NO_BOXES,
        {
            "BBOX_REG_WEIGHTS": [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0], [30.0, 30.0, 15.0, 15.0]],
            "IOUS": [0.5, 0.6, 0.7],
        },
    ),
    **_section(
        "MODEL.ROI_MASK_HEAD",
        _NO_BOXES,
        {
            "NAME": "MaskRCNNConvUpsampleHead",
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "NUM_CONV": 0,
            "CONV_DIM": 256,
            "NORM": "",
            "CLS_AGNOSTIC_MASK": False,
        },
    ),
    **_section(
        "MODEL.ROI_KEYPOINT_HEAD",
        _NO_BOXES,
        {
            "NAME": "KRCNNConvDeconvUpsampleHead",
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "CONV_DIMS": [512] * 8,
            "NUM_KEYPOINTS": 17,
            "MIN_KEYPOINTS_PER_IMAGE": 1,
            "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
            "LOSS_WEIGHT": 1.0,
        },
    ),
    **_section("MODEL.RETINANET", _COUNT, {"NUM_CLASSES": 80}),
    **_section(
        "MODEL.RETINANET",
        _NO_BOXES,
        {
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "NUM_CONVS": 4,
            "IOU_THRESHOLDS": [0.4, 0.5],
            "IOU_LABELS": [0, -1, 1],
            "PRIOR_PROB": 0.01,
            "SCORE_THRESH_TEST": 0.05,
            "TOPK_CANDIDATES_TEST": 1000,
            "NMS_THRESH_TEST": 0.5,
            "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
            "FOCAL_LOSS_GAMMA": 2.0,
            "FOCAL_LOSS_ALPHA": 0.25,
            "SMOOTH_L1_LOSS_BETA": 0.1,
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "NORM": "",
        },
    ),
    **_section("MODEL.PANOPTIC_FPN", _OTHER_HEAD, {"INSTANCE_LOSS_WEIGHT": 1.0}),
    **_section(
        "MODEL.PANOPTIC_FPN.COMBINE",
        "panoptic results follow MODEL.MASK_FORMER.TEST",
        {
            "ENABLED": True,
            "OVERLAP_THRESH": 0.5,
            "STUFF_AREA_LIMIT": 4096,
            "INSTANCES_CONFIDENCE_THRESH": 0.5,
        },
    ),
    **_section(
        "MODEL.SEM_SEG_HEAD",
        _OTHER_HEAD,
        {
            "LOSS_TYPE": "hard_pixel_mining",
            "PROJECT_FEATURES": ["res2"],
            "PROJECT_CHANNELS": [48],
            "ASPP_CHANNELS": 256,
            "ASPP_DILATIONS": [6, 12, 18],
            "ASPP_DROPOUT": 0.1,
            "USE_DEPTHWISE_SEPARABLE_CONV": False,
        },
    ),
    **_section(
        "MODEL.SEM_SEG_HEAD",
        _UNREAD,
        {
            "COMMON_STRIDE": 4,
            "LOSS_WEIGHT": 1.0,
            "DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
            "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
        },
    ),
    **_section("MODEL.RESNETS", _NO_DEFORMABLE, {"DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1}),
    "MODEL.RESNETS.RES4_DILATION": IgnoredKey(1, _NO_DILATION, refused=True),
    "MODEL.RESNETS.RES5_DILATION": IgnoredKey(1, _NO_DILATION, refused=True),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": IgnoredKey([False] * 4, _NO_DEFORMABLE, refused=True),
    "MODEL.RESNETS.RES5_MULTI_GRID": IgnoredKey([1, 2, 4], _DEEPLAB, ([1, 1, 1],)),
    "MODEL.RESNETS.STEM_TYPE": IgnoredKey("deeplab", _DEEPLAB, ("basic",)),
    "MODEL.MASK_FORMER.ENC_LAYERS": IgnoredKey(0, _UNREAD),
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": IgnoredKey(
        "res5", "the decoder reads the pixel decoder's three maps", ("multi_scale_pixel_decoder",)
    ),
    "INPUT.MASK_FORMAT": IgnoredKey(
        "polygon", "polygons, RLE and bitmaps are told apart as they are read", ("bitmask",)
    ),
    **_section(
        "DATASETS",
        _NO_BOXES,
        {
            "PROPOSAL_FILES_TRAIN": (),
            "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
            "PROPOSAL_FILES_TEST": (),
            "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
        },
    ),
    "DATALOADER.ASPECT_RATIO_GROUPING": IgnoredKey(
        True, "a batch is the next samples of one stream, however many processes share it", (False,)
    ),
    **_section(
        "SOLVER",
        _OTHER_SOLVER,
        {
            "BASE_LR_END": 0.0,
            "NESTEROV": False,
            "NUM_DECAYS": 3,
            "RESCALE_INTERVAL": False,
            "BIAS_LR_FACTOR": 1.0,
            "WEIGHT_DECAY_BIAS": None,
        },
    ),
    "SOLVER.REFERENCE_WORLD_SIZE": IgnoredKey(
        0, "the batch does not depend on the number of processes; see SOLVER.IMS_PER_BATCH"
    ),
    **_section("TEST", _NO_BOXES, {"KEYPOINT_OKS_SIGMAS": []}),
    **_section("TEST.PRECISE_BN", "statistics are those of training", {"ENABLED": False, "NUM_ITER": 200}),
    **_section("GLOBAL", "it is Detectron2's scratch space", {"HACK": 1.0}),
}
