"""EoMT as a folder: transformers reads ours, ours reads transformers'."""

import contextlib
import io
import json

import pytest
import torch
from hub_folders import randomize
from small_eomts import theirs

from mask2former.config import config_from_text, load_config
from mask2former.engine.build import construct_model
from mask2former.tools.convert import main as convert
from mask2former.weights.hub.config import hub_config
from mask2former.weights.hub.folder import read_folder

CONFIG = "coco/panoptic-segmentation/eomt/eomt_{}_large_bs16_12ep.yaml"
SMALL = {
    "MODEL.VIT.EMBED_DIM": 32,
    "MODEL.VIT.DEPTH": 3,
    "MODEL.VIT.NUM_HEADS": 2,
    "MODEL.VIT.POSITION_GRID": 4,
    "MODEL.EOMT.NUM_BLOCKS": 2,
    "MODEL.EOMT.ANNEALING_START": [0.1, 0.2],
    "MODEL.EOMT.ANNEALING_END": [0.2, 0.3],
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
    "MODEL.DEVICE": "cpu",
}


def logits(model, images):
    with torch.no_grad():
        predictions = model.network(images)
    return predictions.layers[-1].class_logits, predictions.mask_logits()


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_transformers_reads_what_convert_writes_and_it_comes_back(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    cfg = load_config(CONFIG.format(kind), [part for item in SMALL.items() for part in item])
    model = randomize(construct_model(cfg)).eval()
    model.sem_seg_head.set_probabilities([0.0, 0.0])
    names = [f"class {k}" for k in range(133)]
    content = {"model": model.state_dict(), "config": cfg.dump(), "metadata": {"stuff_classes": names}}
    torch.save(content, tmp_path / "model.pth")
    folder = tmp_path / "folder"
    assert convert([str(tmp_path / "model.pth"), str(folder)]) == 0
    name = {"dinov2": "Eomt", "dinov3": "EomtDinov3"}[kind]
    with contextlib.redirect_stderr(io.StringIO()):
        oracle = getattr(transformers, f"{name}ForUniversalSegmentation").from_pretrained(folder).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = oracle(images)
    classes, masks = logits(model, images)
    torch.testing.assert_close(found.class_queries_logits, classes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.masks_queries_logits, masks, rtol=1e-4, atol=1e-4)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["do_pad"] and not processor["do_split_image"]
    assert convert([str(folder), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in model.state_dict().items())
    assert config_from_text(back["config"], "back").MODEL == cfg.MODEL


def test_other_patches_than_those_of_the_tables_are_an_error():
    with pytest.raises(ValueError, match=r"MODEL\.VIT\.PATCH_SIZE is 8"):
        hub_config(load_config(CONFIG.format("dinov2"), ["MODEL.VIT.PATCH_SIZE", 8]), {}, [], {})


@pytest.mark.parametrize("kind", ["dinov2", "dinov2-gated", "dinov3"])
def test_a_folder_of_transformers_is_a_model_of_ours(kind, tmp_path):
    oracle = theirs(kind, masked=False)
    with contextlib.redirect_stderr(io.StringIO()):
        oracle.save_pretrained(tmp_path)
    checkpoint = read_folder(tmp_path)
    model = construct_model(config_from_text(checkpoint.config, "folder", ["MODEL.DEVICE", "cpu"])).eval()
    model.load_state_dict(checkpoint.model)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = oracle(images)
    for ours, their in zip(
        logits(model, images), (wanted.class_queries_logits, wanted.masks_queries_logits), strict=True
    ):
        torch.testing.assert_close(ours, their, rtol=1e-4, atol=1e-4)
