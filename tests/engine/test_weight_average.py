"""Moving average of the weights: its values, and runs that save, evaluate and resume it."""

import shutil

import pytest
import torch
from process_runs import curve
from tiny_runs import run_train
from torch import nn

from mask2former.engine.checkpoint.run_folder import FINAL, POINTER
from mask2former.engine.weight_average import WeightAverage
from mask2former.predictor import Predictor

FIRST = "model_0000001.pth"  # after two steps of four
RUN = {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__BASE_LR": 0.01, "TEST__EVAL_PERIOD": 3}
EMA = {**RUN, "SOLVER__EMA_DECAY": 0.3}


def small_model():
    """Return a frozen layer, a batch norm, and two names of one layer."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"frozen": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "one": nn.Linear(2, 3)})
    model["frozen"].requires_grad_(False)
    model["other"] = model["one"]
    return model


def step(average, model, done):
    """Change everything in the model, and add it to the average."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.ones_like(tensor))
    average.add(done)


def test_the_average_is_that_of_a_loop_over_numbers_and_nothing_else_is_averaged():
    model = small_model()
    average = WeightAverage(model, 0.25)
    expected = model["one"].weight.tolist()
    for done in (1, 2, 3, 4):
        step(average, model, done)
        share = min(0.25, (1 + done) / (10 + done))  # 2/11, then 1/4
        for old, new in zip(expected, model["one"].weight.tolist(), strict=True):
            old[:] = [share * a + (1 - share) * b for a, b in zip(old, new, strict=True)]
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.in_model() as kept:
        torch.testing.assert_close(model["one"].weight.data, torch.tensor(expected))
        assert torch.equal(model["other"].weight, model["one"].weight)
        names = {name for name in trained if name.startswith(("norm.weight", "norm.bias", "one", "other"))}
        assert kept["unaveraged"].keys() == names
        for name, tensor in model.state_dict().items():
            assert torch.equal(kept["unaveraged"].get(name, tensor), trained[name]), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_the_weights_come_back_after_an_error():
    model = small_model()
    average = WeightAverage(model, 0.5)
    step(average, model, 1)
    before = model["one"].weight.clone()
    with pytest.raises(KeyError), average.in_model():
        assert not torch.equal(model["one"].weight, before)
        raise KeyError
    assert torch.equal(model["one"].weight, before)


def final(folder):
    return torch.load(folder / FINAL, weights_only=True)


def resume(source, folder, **changes):
    """Continue the run in `source` in `folder`, from its checkpoint after two steps."""
    folder.mkdir()
    shutil.copy(source / FIRST, folder / FIRST)
    shutil.copy(source / "metrics.json", folder)
    (folder / POINTER).write_text(FIRST)
    assert run_train(folder, "--resume", **changes) == 0


@pytest.fixture(scope="module")
def averaged(tiny_shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    assert run_train(folder, **EMA) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tiny_shapes, tmp_path_factory):
    """The same run without an average."""
    folder = tmp_path_factory.mktemp("plain")
    assert run_train(folder, **RUN) == 0
    return folder


def assert_trained_alike(averaged, plain):
    """Assert that the run with an average went on from the weights of the run without one."""
    weights, found = final(plain)["model"], final(averaged)
    for name, tensor in found["unaveraged"].items():
        assert torch.equal(tensor, weights[name]), name
    assert any(not torch.equal(found["model"][name], tensor) for name, tensor in weights.items())


def test_training_is_that_without_an_average(averaged, plain):
    assert "unaveraged" not in final(plain)
    assert_trained_alike(averaged, plain)


def test_a_resumed_run_equals_an_uninterrupted_one(averaged, tmp_path):
    resume(averaged, tmp_path / "run", **EMA)
    assert str(curve(tmp_path / "run")) == str(curve(averaged))
    expected, found = final(averaged), final(tmp_path / "run")
    for key in ("model", "unaveraged"):
        assert found[key].keys() == expected[key].keys()
        for name, tensor in expected[key].items():
            assert torch.equal(found[key][name], tensor), name


def test_the_averaged_model_is_evaluated_and_read(averaged, tmp_path, capsys):
    weights = final(averaged)["model"]
    for name, tensor in Predictor(str(averaged / FINAL)).model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    results = curve(averaged)[-1]
    row = ["panoptic_seg", "PQ", results["panoptic_seg/PQ"], 0.0]
    changes = {"MODEL__WEIGHTS": averaged / FINAL, "TEST__EXPECTED_RESULTS": [row]}
    assert run_train(tmp_path, "--eval-only", **changes) == 0, capsys.readouterr().err


def test_the_average_can_be_added_or_removed_by_a_resume(averaged, plain, tmp_path):
    resume(averaged, tmp_path / "without", **RUN)
    assert_trained_alike(averaged, tmp_path / "without")
    resume(plain, tmp_path / "with", **EMA)
    assert_trained_alike(tmp_path / "with", plain)
