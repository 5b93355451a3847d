"""Small models from the command line: they train, resume, evaluate and predict."""

import shutil

import pytest
from process_runs import assert_same_weights
from tiny_runs import OPTIONS, random_sample, tiny_shapes

from mask2former import Predictor
from mask2former.engine.metrics_log import read_metrics
from mask2former.tools.evaluate import main as evaluate
from mask2former.tools.train import main as train

__all__ = ["tiny_shapes"]

MASK2FORMER, MASKFORMER, KNET = (
    f"shapes/panoptic-segmentation/{model}_R18_bs8_shapes.yaml"
    for model in ("maskformer2", "maskformer", "knet")
)
DETRS_INPUT = {  # that of MaskFormer's COCO models
    "INPUT.DATASET_MAPPER_NAME": "detr_panoptic",
    "INPUT.MIN_SIZE_TRAIN": [48, 64],
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute_range",
    "INPUT.CROP.SIZE": [40, 60],
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 0,
}
ENCODER = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
}
VIT = {
    "MODEL.BACKBONE.NAME": "ViTSimplePyramid",
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 2,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.POSITION_GRID": 4,
    "MODEL.VIT.WINDOW_SIZE": 3,
    "MODEL.VIT.GLOBAL_BLOCKS": [1],
    "MODEL.VIT.DROP_PATH_RATE": 0.2,
    "SOLVER.LAYER_DECAY": 0.9,
}

EOMT = VIT | {
    "MODEL.BACKBONE.NAME": "EomtBackbone",
    "MODEL.EOMT.NUM_BLOCKS": 1,
    "MODEL.EOMT.ANNEALING_START": [0.2],
    "MODEL.EOMT.ANNEALING_END": [0.9],
}

METRICS = [("sem_seg", "mIoU"), ("segm", "AP"), ("panoptic_seg", "PQ")]
KINDS = {
    "large-scale jitter": (MASKFORMER, {}),
    "DETR's input and encoder": (MASKFORMER, DETRS_INPUT | ENCODER),
    "K-Net": (KNET, {}),
    "plain ViT": (MASK2FORMER, VIT),
    "EoMT": ("shapes/panoptic-segmentation/eomt_vit_bs8_shapes.yaml", EOMT),
}


def run(command, config, folder, *flags, **changes):
    """Run `mask2former train` or `evaluate` on a config, made tiny."""
    values = {**OPTIONS, "OUTPUT_DIR": folder, **changes}
    return command(
        ["--config-file", config, *flags, *(str(part) for item in values.items() for part in item)]
    )


@pytest.mark.parametrize(("config", "kind"), KINDS.values(), ids=KINDS)
def test_it_resumes_evaluates_and_predicts(config, kind, tiny_shapes, tmp_path):
    """The resumed run ends as the undisturbed one, with dropout: its random numbers are those of the step."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    kind = {**kind, "SOLVER.CHECKPOINT_PERIOD": 2}
    assert run(train, config, whole, **kind) == 0
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run(train, config, resumed, "--resume", **kind) == 0
    assert_same_weights(resumed, whole)

    results = read_metrics(whole / "metrics.json")[-1]
    expected = [[*name, results["/".join(name)], 1e-6] for name in METRICS]
    weights = str(whole / "model_final.pth")
    checked = {"MODEL.WEIGHTS": weights, "TEST.EXPECTED_RESULTS": expected}
    assert run(evaluate, config, tmp_path / "evaluated", **kind, **checked) == 0

    result = Predictor(weights)(random_sample(0, 1)["image"].permute(1, 2, 0).numpy())
    assert result.semantic.shape == result.panoptic.ids.shape == (64, 64)
