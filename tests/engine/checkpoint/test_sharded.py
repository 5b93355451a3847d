"""Checkpoints as folders, written by one process: complete or not there, and read without running code."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from mask2former.engine.checkpoint.run_folder import LOCK, POINTER, RunFolder
from mask2former.engine.checkpoint.sharded import METADATA, RUN, load_tensors
from mask2former.engine.errors import TrainingError


def content(step):
    state = {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((3, 2), step / 2)}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    plain = {"window": {"sums": {"loss": 1.5}, "count": 2}, "scaler": {}, "seed": 7, "config": "A: 1"}
    weights = {"layer.weight": torch.full((3, 2), float(step)), "norm.count": torch.tensor(step)}
    return {"model": weights, "optimizer": optimizer, "iteration": step, **plain}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.parametrize("sharded", [True, False])
def test_a_saved_checkpoint_is_read_again(folder, sharded):
    folder.save("model_0000009.pth", content(9), sharded)
    assert (folder.path / POINTER).read_text() == f"model_0000009.{'sharded' if sharded else 'pth'}"
    saved = content(9)
    read = load_tensors(folder.load_last(), saved["model"], [torch.zeros(3, 2)])
    for key in ("iteration", "window", "scaler", "seed", "config"):
        assert read[key] == saved[key]
    assert read["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    torch.testing.assert_close(read["model"], saved["model"], rtol=0, atol=0)
    torch.testing.assert_close(read["optimizer"]["state"], saved["optimizer"]["state"], rtol=0, atol=0)


def test_without_parameters_the_optimizer_state_is_not_read(folder):
    folder.save("model_0000009.pth", content(9), sharded=True)
    read = load_tensors(folder.load_last(), content(0)["model"])
    assert read["optimizer"]["state"] == {}
    torch.testing.assert_close(read["model"], content(9)["model"], rtol=0, atol=0)


def test_a_sharded_checkpoint_of_an_earlier_version_is_read(folder):
    path = folder.save("model_0000009.pth", content(9), sharded=True)
    path.rename(path.with_suffix(".parts"))
    folder.save("model_0000004.pth", content(4))
    (folder.path / POINTER).write_text("model_0000009.parts")
    assert folder.load_last()["iteration"] == 9


def test_files_and_folders_stand_side_by_side(folder):
    folder.save("model_0000004.pth", content(4), sharded=True)
    folder.save("model_0000009.pth", content(9))
    assert folder.load_last()["iteration"] == 9
    (folder.path / "model_0000009.pth").write_bytes(b"")
    assert folder.load_last()["iteration"] == 4


def damage_tensors(path):
    (file,) = path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-200])


def damage_by_loss(path):
    next(path.glob("*.distcp")).unlink()


def damage_description(path):
    (path / METADATA).write_bytes((path / METADATA).read_bytes()[:-20])


def damage_run(path):
    (path / RUN).write_bytes(b"\0" * 100)


class Code:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def damage_by_code(path):
    (path / METADATA).write_bytes(pickle.dumps(Code(exec, "raise SystemExit('code was run')")))


def damage_by_code_of_torch(path):
    (path / METADATA).write_bytes(pickle.dumps(Code(torch.load, "somewhere")))


def damage_by_foreign_content(path):
    (path / METADATA).write_bytes(pickle.dumps([1, 2]))


@pytest.mark.parametrize(
    "damage",
    [
        damage_tensors,
        damage_by_loss,
        damage_description,
        damage_run,
        damage_by_code,
        damage_by_code_of_torch,
        damage_by_foreign_content,
    ],
)
def test_a_damaged_folder_falls_back_to_the_one_before(folder, damage, caplog):
    folder.save("model_0000004.pth", content(4), sharded=True)
    damage(folder.save("model_0000009.pth", content(9), sharded=True))
    assert folder.load_last()["iteration"] == 4
    assert "model_0000009.sharded cannot be read" in caplog.text
    folder.save("model_0000009.pth", content(9), sharded=True)  # when the run has come there again
    assert folder.load_last()["iteration"] == 9


@pytest.mark.parametrize("module", ["os", "torch.hub", "torch.distributed.checkpoint.filesystem"])
def test_names_that_could_do_something_are_refused(folder, module, caplog):
    folder.save("model_0000004.pth", content(4), sharded=True)
    path = folder.save("model_0000009.pth", content(9), sharded=True)
    (path / METADATA).write_bytes(b"c" + module.encode() + b"\nos.system\n.")
    assert folder.load_last()["iteration"] == 4
    assert f"{module}.os.system" in caplog.text


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["torch.save", "torch.distributed.checkpoint.save", "os.replace"])
def test_an_interrupted_save_leaves_the_last_good_one(folder, monkeypatch, moment):
    folder.save("model_0000004.pth", content(4), sharded=True)

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(Killed):
            folder.save("model_0000009.pth", content(9), sharded=True)
    assert folder.load_last()["iteration"] == 4
    assert (folder.path / "model_0000009.sharded.unfinished").is_dir()
    folder.begin(training=True)
    assert sorted(path.name for path in folder.path.iterdir()) == [LOCK, POINTER, "model_0000004.sharded"]


def test_a_process_that_cannot_write_is_named(folder, monkeypatch):
    def full(*args, **kwargs):
        raise CheckpointException("save", {3: (OSError("No space left on device"), None)})

    monkeypatch.setattr(dcp, "save", full)
    with pytest.raises(TrainingError, match=r"cannot be written \(process 3: No space left on device\)"):
        folder.save("model_0000009.pth", content(9), sharded=True)


def test_folders_of_an_earlier_run_are_set_aside(folder):
    folder.save("model_0000004.pth", content(4), sharded=True)
    folder.set_earlier_run_aside()
    assert (folder.path / "earlier_run_1" / "model_0000004.sharded" / RUN).is_file()
    assert folder.load_last() is None
