"""Names and shapes of EoMT's published checkpoints, and the table that translates them."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from mask2former.config import load_config
from mask2former.engine.build import build_model
from mask2former.weights.adapt import adapt
from mask2former.weights.rename import translate

SHARED = os.environ.get("M2F_SHARED")
PANOPTIC, SEMANTIC = "coco/panoptic-segmentation/eomt", "ade20k/semantic-segmentation/eomt"
FILES = {
    "coco_panoptic_eomt_small_640_2x": f"{PANOPTIC}/eomt_dinov2_small_bs16_24ep.yaml",
    "coco_panoptic_eomt_base_640_2x": f"{PANOPTIC}/eomt_dinov2_base_bs16_24ep.yaml",
    "coco_panoptic_eomt_large_640": f"{PANOPTIC}/eomt_dinov2_large_bs16_12ep.yaml",
    "ade20k_semantic_eomt_large_512": f"{SEMANTIC}/eomt_dinov2_large_bs16_31ep.yaml",
}


@pytest.mark.skipif(SHARED is None, reason="needs the manifests of the published checkpoints (M2F_SHARED)")
@pytest.mark.parametrize("name", sorted(FILES))
def test_published_checkpoints_fit_their_configs(name):
    path = Path(SHARED) / f"manifests/vit/eomt_{name}.json.gz"
    shapes = json.loads(gzip.decompress(path.read_bytes()))["state_dict"]
    scheme, tensors = translate({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert scheme.title == "EoMT checkpoint (the authors' names)"
    with torch.device("meta"):
        model = build_model(load_config(FILES[name], ["MODEL.DEVICE", "meta"]))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert wanted == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    scheme, own = translate(model.state_dict())
    assert scheme.title == "EoMT checkpoint" and own.keys() == wanted.keys()


def test_other_classes_and_another_number_of_queries_fit():
    wanted = torch.zeros(7, 8)
    value, note = adapt("sem_seg_head.class_head.weight", torch.ones(5, 8), wanted)
    assert value is wanted and note == "re-initialized: class head (4 -> 6 classes)"
    queries = torch.randn(5, 8)
    value, note = adapt("sem_seg_head.q.weight", queries, torch.zeros(3, 8))
    assert torch.equal(value, queries[:3]) and note == "resized: queries of EoMT (5 -> 3)"
