"""Every configuration key that the project reads, with its default.

Names and defaults are those of Detectron2 and Mask2Former. Seven defaults differ: `MODEL.DEVICE` is "auto";
five name parts of Mask2Former, because Detectron2's do not exist here: `MODEL.META_ARCHITECTURE`,
`MODEL.RESNETS.OUT_FEATURES`, and `NAME`, `IN_FEATURES` and `PIXEL_DECODER_NAME` of `MODEL.SEM_SEG_HEAD`; and
`MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE` names what the default decoder reads.
"""

from typing import Any

DEFAULTS: dict[str, Any] = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.DEVICE": "auto",  # "auto": cuda if there is a GPU, else cpu
    "MODEL.WEIGHTS": "",
    "MODEL.WEIGHTS_STRICT": True,  # names or shapes that do not fit are an error
    "MODEL.ACTIVATION_CHECKPOINTING": False,  # recompute blocks in the backward pass: less memory, more time
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 50,  # 18, 34, 50, 101 or 152
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,  # 64 for depths 18 and 34
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",  # of build_resnet_deeplab_backbone; or "basic"
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],  # its dilations of the blocks of res5
    "MODEL.RESNETS.RES5_STRIDE": 2,  # its stride of res5, or 1: DETR's DC5
    "MODEL.SWIN.PATCH_SIZE": 4,
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.MLP_RATIO": 4.0,
    "MODEL.SWIN.QKV_BIAS": True,
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.DROP_RATE": 0.0,
    "MODEL.SWIN.ATTN_DROP_RATE": 0.0,
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.APE": False,  # learned absolute position embedding
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": 224,  # the image size of that embedding
    "MODEL.SWIN.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.VIT.PATCH_SIZE": 16,  # side of a patch in pixels; EoMT also takes 4 and 8
    "MODEL.VIT.EMBED_DIM": 1024,  # of the ViT-L; S: 384, B: 768, g: 1536
    "MODEL.VIT.DEPTH": 24,  # blocks; S, B: 12, g: 40
    "MODEL.VIT.NUM_HEADS": 16,  # S: 6, B: 12, g: 24
    "MODEL.VIT.MLP_RATIO": 4.0,
    "MODEL.VIT.FFN": "mlp",  # or "swiglu": DINOv2-g
    "MODEL.VIT.REGISTERS": 4,  # tokens beside the class token; BEiT: 0
    "MODEL.VIT.POSITIONS": "learned",  # DINOv3: "rotary", BEiT: "relative"
    "MODEL.VIT.POSITION_GRID": 40,  # side of the grid of learned and relative positions: the crop's over 16
    "MODEL.VIT.ROPE_BASE": 100.0,  # of rotary positions
    "MODEL.VIT.ROPE_RESCALE": 1.0,  # as 2.0: rotary positions in training times 0.5 to 2.0, at random
    "MODEL.VIT.KEY_BIAS": True,  # DINOv3, BEiT: False
    "MODEL.VIT.WINDOW_SIZE": 0,  # side of windows of attention in patches; 0: without
    "MODEL.VIT.GLOBAL_BLOCKS": [],  # blocks without windows, as [5, 11, 17, 23]
    "MODEL.VIT.LAYER_SCALE": 0.00001,  # initial factor of residual branches; 0: without
    "MODEL.VIT.NORM_EPS": 0.000001,  # DINOv3: 0.00001
    "MODEL.VIT.FINAL_NORM": True,  # BEiT: False
    "MODEL.VIT.DROP_PATH_RATE": 0.0,
    "MODEL.VIT.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.VIT_ADAPTER.NUM_HEADS": 16,  # of ViT-Adapter's attention; S: 6, B: 12
    "MODEL.VIT_ADAPTER.VALUE_RATIO": 0.5,  # width of its values over EMBED_DIM; S: 1.0
    "MODEL.VIT_ADAPTER.NORM": "SyncBN",  # of its convolutions and of the maps
    "MODEL.VIT_TAPS.BLOCKS": [7, 11, 15, 23],  # of TappedViT: a map follows each of these blocks, from 0
    "MODEL.VIT_TAPS.PYRAMID": True,  # resize the maps to strides 4 to 32; False: all have stride 16
    "MODEL.VIT_TAPS.NORM": "SyncBN",  # between doublings
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,  # of per-pixel models
    "MODEL.SEM_SEG_HEAD.AUXILIARY_WEIGHT": 0.4,  # of auxiliary heads' losses (UperNet, SETR); 0: without
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_DIM_FEEDFORWARD": 1024,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",  # the maps that it reads
    "MODEL.MASK_FORMER.CRITERION_NAME": "SetCriterion",  # a per-pixel head then takes PixelCriterion
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,  # of the transformer decoder
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,  # of MaskFormer's decoder, on the map that it reads
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,  # predictions: one more than layers, in MaskFormer and K-Net as many
    "MODEL.MASK_FORMER.DROPOUT": 0.1,  # of the pixel decoder, of MaskFormer's decoder, and of UperNet
    "MODEL.MASK_FORMER.DECODER.ATTENTION": "masked",  # to the memory; or "cross", "smca", "pooling"
    "MODEL.MASK_FORMER.DECODER.MEMORY_STRIDE": 0,  # all layers attend to this level; 0: all levels in turn
    "MODEL.MASK_FORMER.DECODER.CONCATENATE_LEVELS": False,  # each layer attends to all levels at once
    "MODEL.MASK_FORMER.DECODER.FINE_LAYERS": 0,  # so many last layers attend to the map of stride 4
    "MODEL.MASK_FORMER.DECODER.LEARNED_QUERIES": True,  # False: query features start from zero
    "MODEL.MASK_FORMER.DECODER.SUPERVISE_QUERIES": True,  # a loss for the prediction before the first layer
    "MODEL.MASK_FORMER.DECODER.SELF_ATTENTION_FIRST": False,
    "MODEL.MASK_FORMER.DECODER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.DECODER.PILOT_GROUPS": 0,  # in training: queries for each target that are told it
    "MODEL.MASK_FORMER.DECODER.PILOT_CLASS_NOISE": 0.2,
    "MODEL.MASK_FORMER.DECODER.PILOT_MASK_NOISE": 0.2,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    "MODEL.MASK_FORMER.MATCH_ON": "points",  # or "masks": match queries and targets on whole masks
    "MODEL.MASK_FORMER.LOSS_ON": "points",  # or "masks"
    "MODEL.MASK_FORMER.MASK_LOSS": "cross_entropy",  # or "focal"; dice beside it
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 112 * 112,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.OBJECT_POINT_RATIO": 0.0,  # share of points around objects, however small they are
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.THING_IDS": [],  # contiguous ids of the thing classes; set from the dataset
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.LAYER": -1,  # the prediction that results are made of; 0: the first, -1: the last
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    "MODEL.MASK_FORMER.TEST.MEMORY_BUDGET_MB": 256,  # masks are upsampled in chunks of this size
    "MODEL.EOMT.NUM_BLOCKS": 4,  # last blocks of the ViT, with queries; S, B: 3, g: 5
    "MODEL.EOMT.ANNEALING_START": (),  # share of training after which each block loses masks; (): never
    "MODEL.EOMT.ANNEALING_END": (),  # share after which it has none
    "MODEL.EOMT.ANNEALING_POWER": 0.9,  # of the share of masks between them
    "MODEL.EOMT.SQUARES": "pad",  # images to squares; or "windows": semantic scores of squares; or ""
    "MODEL.KNET.RANK_WEIGHT": 0.1,  # of its loss over all kernels of a pixel
    "MODEL.KNET.SEG_WEIGHT": 1.0,  # of its loss of each pixel's class
    "MODEL.DETR.STAGE": "masks",  # train the mask head of a frozen detector; or "boxes": train the detector
    "MODEL.DETR.L1_WEIGHT": 5.0,  # of boxes, in the matching cost and the loss
    "MODEL.DETR.GIOU_WEIGHT": 2.0,
    "MODEL.DETR.CATEGORY_IDS": [],  # the class head's output of each class; empty: the first, one a class
    "MODEL.DETR.NUM_IDS": 0,  # its outputs besides "no object"; 0: as many as are used
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.MAX_MEGAPIXELS": 200.0,  # larger images and label maps are refused before they are decoded
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.EMPTY_REDRAWS": 0,  # crops without an object are drawn again, at most so often
    "INPUT.CROP.ENABLED": False,
    "INPUT.CROP.TYPE": "relative_range",
    "INPUT.CROP.SIZE": [0.9, 0.9],
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.SAMPLING_FRAME_NUM": 2,  # frames of a training clip
    "INPUT.SAMPLING_FRAME_RANGE": 20,  # the most frames between the one drawn first and another of the clip
    "INPUT.SAMPLING_FRAME_SHUFFLE": False,
    "INPUT.AUGMENTATIONS": [],  # of clips: brightness, contrast, saturation, rotation
    "INPUT.SIZE_DIVISIBILITY": -1,  # side of the square that training images are padded to; -1: no padding
    "INPUT.PAD_LEVEL": 128,  # gray level of this padding, and of that of large-scale jitter; 0: black
    "INPUT.IMAGE_SIZE": 1024,  # large-scale jitter: side of the crop; the scales follow
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.COPY_PASTE.PROBABILITY": 0.0,  # share of the training images that get objects of another one
    "INPUT.COPY_PASTE.MAX_SIZE": 0.0,  # paste objects of at most this square root of area, pixels; 0: all
    "INPUT.COPY_PASTE.COPIES": 0,  # of each, at random places; 0: one, where it is in its own image
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "DATALOADER.REPEAT_SQRT": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.STRATEGY": "ddp",  # with several processes: "ddp" or "fsdp" (sharded weights)
    "SOLVER.IMS_PER_BATCH": 16,  # images of a step, over all processes and micro-batches
    "SOLVER.ACCUMULATION_STEPS": 1,  # micro-batches of a step; "auto": as memory suggests
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.EPOCHS": 0.0,  # sets MAX_ITER by epochs of DATASETS.TRAIN; 0: MAX_ITER as it is
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.LAYER_DECAY": 1.0,  # of the rate, from block to block of a ViT; as 0.9, with the key above at 1.0
    "SOLVER.LAYER_DECAY_RULE": "beit",  # from the head to the last block too; or "eomt": from there on
    "SOLVER.FULL_RATE_BLOCKS": 0,  # so many last blocks of a ViT are left out of LAYER_DECAY
    "SOLVER.MOMENTUM": 0.9,  # of SGD
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.STEPS": (30000,),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.VIT_WARMUP_ITERS": 0,  # a ViT stands still for WARMUP_ITERS, then warms up; 0: with the others
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.TASKS": (),  # each training image draws one of these: semantic, instance, panoptic
    "SOLVER.TASK_SHARES": (),  # how often each of them is drawn; empty: equally often
    "SOLVER.EMA_DECAY": 0.0,  # average the weights, as 0.9998, and evaluate and save that model; 0: do not
    "SOLVER.EARLY_STOPPING": 0,  # end after so many evaluations without a better TEST.BEST_METRIC; 0: do not
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.AMP.DTYPE": "auto",
    "SOLVER.AMP.PIXEL_DECODER": False,  # also its matrix products, which published models keep in float32
    "TEST.EVAL_PERIOD": 0,
    "TEST.BEST_METRIC": "",  # as "panoptic_seg/PQ": model_best.pth is the model with its highest value
    "TEST.EXPECTED_RESULTS": [],
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.BOUNDARY": False,  # also measure boundary AP and boundary PQ
    "TEST.PROPOSALS": False,  # each query is one instance; also measure AR@100, whatever the class
    "TEST.SAVE_PREDICTIONS": False,  # in the official formats of the datasets
    "TEST.RECOUNT_AREAS": False,  # panoptic ground truth: areas from the PNGs, not the JSON
    "TEST.AUG.ENABLED": False,  # test-time augmentation: average over sizes and mirrored images
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    "TEST.AUG.MAX_SIZE": 4000,
    "TEST.AUG.FLIP": True,
    "TEST.TILE.SIZE": 0,  # predict squares of this side in pixels, and merge the results; 0: the whole image
    "TEST.TILE.OVERLAP": 0.25,  # least part of a side that neighbors share
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "VIS_PERIOD": 0,
    "LOGGERS": ["tensorboard"],  # or "wandb", "mlflow", several, or none: who gets what is in metrics.json
}

# Words that a key takes besides values of its default's type.
WORDS: dict[str, tuple[str, ...]] = {"SOLVER.ACCUMULATION_STEPS": ("auto",)}
