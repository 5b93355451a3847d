"""What starts quickly: imports that prediction does not need, and weights that a file has."""

import subprocess
import sys

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, tiny_config
from torch import nn

from mask2former.engine.build import build_model
from mask2former.engine.setup.trained_model import _NoRandomValues, trained_model
from mask2former.predictor import Predictor
from mask2former.weights.load import read_checkpoint

SLOW = {  # modules that take longer to import than most of ours together
    "faster_coco_eval",
    "hotcoco",
    "scipy",
    "sympy",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("weights") / "model_final.pth")


def test_a_predictor_needs_no_module_of_training(checkpoint):
    program = (
        "import sys, torch; before = {*sys.modules}; from mask2former import Predictor\n"
        f"Predictor({str(checkpoint)!r}); print(*({SLOW!r} & {{*sys.modules}} - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert result.stdout.split() == []


def test_weights_that_the_file_has_are_not_drawn(checkpoint):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = Predictor(str(checkpoint)).model
    assert torch.equal(torch.get_rng_state(), state)
    saved = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_values_outside_the_limits_of_a_distribution_are_not_drawn_again():
    """Swin's weights are drawn from one; memory that was in use before holds anything."""
    weights = torch.full((4,), 9.0)
    with _NoRandomValues():
        nn.init.trunc_normal_(weights, std=0.02)
    assert not weights.any()


def test_weights_that_the_file_lacks_get_their_initial_values(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    lacking = [name for name in content["model"] if name.startswith("backbone.res5")]
    for name in lacking:
        del content["model"][name]
    torch.save(content, tmp_path / "partial.pth")
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS_STRICT = False
    torch.manual_seed(5)
    initial = build_model(cfg).state_dict()
    torch.manual_seed(5)
    model = trained_model(cfg, read_checkpoint(tmp_path / "partial.pth"))
    assert any("conv" in name for name in lacking)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, initial[name] if name in lacking else content["model"][name]), name
