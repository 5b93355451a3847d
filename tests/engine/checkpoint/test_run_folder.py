"""Checkpoints in a run folder, as files or in shards, are complete or absent; reading them runs no code."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from pickled_call import PickledCall
from torch.distributed.checkpoint.api import CheckpointException

from mask2former.engine.checkpoint.run_folder import FINAL, LOCK, POINTER, RunFolder
from mask2former.engine.checkpoint.sharded import METADATA, RUN, load_tensors
from mask2former.engine.errors import TrainingError
from mask2former.utils.atomic_files import atomic_write

KINDS = pytest.mark.parametrize("sharded", [False, True], ids=["file", "sharded"])


def content(step):
    state = {0: {"step": torch.tensor(float(step)), "exp_avg": torch.full((3, 2), step / 2)}}
    optimizer = {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}
    plain = {"window": {"sums": {"loss": 1.5}, "count": 2}, "scaler": {}, "seed": 7, "config": "A: 1"}
    weights = {"layer.weight": torch.full((3, 2), float(step)), "norm.count": torch.tensor(step)}
    return {"model": weights, "optimizer": optimizer, "iteration": step, **plain}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@KINDS
def test_the_last_saved_checkpoint_is_loaded(folder, sharded):
    for step in (4, 9):
        folder.save(f"model_{step:07d}.pth", content(step), sharded)
    assert (folder.path / POINTER).read_text() == f"model_0000009.{'sharded' if sharded else 'pth'}"
    saved = content(9)
    loaded = load_tensors(folder.load_last(), saved["model"], [torch.zeros(3, 2)])
    for key in ("iteration", "window", "scaler", "seed", "config"):
        assert loaded[key] == saved[key]
    assert loaded["optimizer"]["param_groups"] == saved["optimizer"]["param_groups"]
    torch.testing.assert_close(loaded["model"], saved["model"], rtol=0, atol=0)
    torch.testing.assert_close(loaded["optimizer"]["state"], saved["optimizer"]["state"], rtol=0, atol=0)


def test_shards_of_an_earlier_version_are_read_without_the_optimizer(folder):
    path = folder.save("model_0000009.pth", content(9), sharded=True)
    path.rename(path.with_suffix(".parts"))
    folder.save("model_0000004.pth", content(4))
    (folder.path / POINTER).write_text("model_0000009.parts")
    loaded = load_tensors(folder.load_last(), content(0)["model"])
    assert loaded["optimizer"]["state"] == {}
    torch.testing.assert_close(loaded["model"], content(9)["model"], rtol=0, atol=0)


def test_files_and_sharded_checkpoints_can_be_mixed(folder):
    folder.save("model_0000004.pth", content(4), sharded=True)
    folder.save("model_0000009.pth", content(9))
    assert folder.load_last()["iteration"] == 9
    (folder.path / "model_0000009.pth").write_bytes(b"")
    assert folder.load_last()["iteration"] == 4


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def doubled_tuple():
    """Return a tuple whose hash takes 2^24 steps here, and for ever in a file with more of them."""
    value = ()
    for _ in range(24):
        value = (value, value)
    return value


EVIL = PickledCall(exec, "raise SystemExit('code in a checkpoint was run')")
DAMAGE = {
    "truncated": truncate,
    "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "empty": lambda path: path.write_bytes(b""),
    "other content": lambda path: torch.save([1, 2, 3], path),
    "step as text": lambda path: torch.save({**content(9), "iteration": "9"}, path),
    "zip of nothing": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "endless hash": lambda path: torch.save({**content(9), "seed": {doubled_tuple(): 1}}, path),
    "code": lambda path: torch.save({"model": EVIL, "optimizer": {}, "iteration": 1}, path),
}
SHARDED_DAMAGE = {
    "truncated shards": lambda path: truncate(next(path.glob("*.distcp"))),
    "lost shards": lambda path: next(path.glob("*.distcp")).unlink(),
    "truncated index": lambda path: truncate(path / METADATA),
    "zeros": lambda path: (path / RUN).write_bytes(b"\0" * 100),
    "endless hash": lambda path: torch.save({doubled_tuple(): 1}, path / RUN),
    "code": lambda path: (path / METADATA).write_bytes(pickle.dumps(EVIL)),
    "code of torch": lambda path: (path / METADATA).write_bytes(pickle.dumps(PickledCall(torch.load, "x"))),
    "other content": lambda path: (path / METADATA).write_bytes(pickle.dumps([1, 2])),
}


@pytest.mark.parametrize(
    ("sharded", "damage"), [*((False, name) for name in DAMAGE), *((True, name) for name in SHARDED_DAMAGE)]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, sharded, damage, caplog):
    folder.save("model_0000004.pth", content(4), sharded)
    path = folder.save("model_0000009.pth", content(9), sharded)
    (SHARDED_DAMAGE if sharded else DAMAGE)[damage](path)
    assert folder.load_last()["iteration"] == 4
    assert path.name in caplog.text and "the one before" in caplog.text
    folder.save("model_0000009.pth", content(9), sharded)
    assert folder.load_last()["iteration"] == 9


@pytest.mark.parametrize("module", ["os", "torch.hub", "torch.distributed.checkpoint.filesystem"])
def test_an_index_that_names_functions_is_refused(folder, module, caplog):
    path = folder.save("model_0000009.pth", content(9), sharded=True)
    (path / METADATA).write_bytes(b"c" + module.encode() + b"\nos.system\n.")
    with pytest.raises(ValueError, match="no checkpoint"):
        folder.load_last()
    assert f"{module}.os.system" in caplog.text


def test_no_checkpoint_is_none_and_only_damaged_ones_are_an_error(folder):
    assert folder.load_last() is None
    assert RunFolder(folder.path / "nowhere").load_last() is None
    truncate(folder.save("model_0000009.pth", content(9)))
    with pytest.raises(ValueError, match=r"no checkpoint in .*: model_0000009\.pth"):
        folder.load_last()


@pytest.mark.parametrize("pointer", ["model_0000099.pth", "../../x", "", "\xff\x00", None])
def test_without_a_valid_pointer_the_latest_step_is_loaded(folder, pointer):
    for step in (9, 4, 19):
        folder.save(f"model_{step:07d}.pth", content(step))
    (folder.path / POINTER).unlink()
    if pointer is not None:
        (folder.path / POINTER).write_bytes(pointer.encode("latin1"))
    assert folder.load_last()["iteration"] == 19
    folder.save(FINAL, content(24))
    (folder.path / POINTER).unlink()
    assert folder.load_last()["iteration"] == 24
    folder.save(FINAL, content(14))  # of a run that was then continued
    (folder.path / POINTER).unlink()
    assert folder.load_last()["iteration"] == 19


def test_a_failed_write_leaves_the_old_file_and_the_pointer(folder):
    folder.save(FINAL, content(4))
    with pytest.raises(Exception, match=r"(?i)pickle"):
        folder.save(FINAL, {**content(9), "not plain": lambda: None})
    assert folder.load_last()["iteration"] == 4
    assert sorted(path.name for path in folder.path.iterdir()) == [POINTER, FINAL]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["torch.save", "torch.distributed.checkpoint.save", "os.replace"])
def test_an_interrupted_sharded_save_leaves_the_previous_checkpoint(folder, monkeypatch, moment):
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


def test_atomic_write_replaces_the_file_after_the_block(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@KINDS
def test_all_files_of_an_earlier_run_are_set_aside(folder, sharded):
    for _ in range(2):
        path = folder.save("model_0000004.pth", content(4), sharded)
        (folder.path / "metrics.json").write_text("{}\n")
        (folder.path / "log.txt").write_text("stays\n")
        (folder.path / "inference/panoptic").mkdir(parents=True)
        folder.set_earlier_run_aside()
    assert sorted(p.name for p in folder.path.iterdir()) == ["earlier_run_1", "earlier_run_2", "log.txt"]
    moved = sorted(p.name for p in (folder.path / "earlier_run_2").iterdir())
    assert moved == ["inference", "last_checkpoint", "metrics.json", path.name]
    assert folder.load_last() is None
    (folder.path / "inference").mkdir()  # of an evaluation alone
    folder.set_earlier_run_aside()
    assert not (folder.path / "earlier_run_3").exists()
