"""A full or read-only disk is reported early, and earlier checkpoints survive it."""

import collections
import errno
import shutil

import pytest
import torch
from full_disk import files_no_larger_than
from tiny_runs import run_train, tiny_config

from mask2former.engine.build import build_model
from mask2former.engine.checkpoint.disk_space import check_writable, checkpoint_bytes, write_errors_explained
from mask2former.engine.checkpoint.run_folder import RunFolder
from mask2former.engine.errors import TrainingError
from mask2former.engine.train import build_trainer


def run(folder, *flags, **changes):
    return run_train(folder, *flags, SOLVER__CHECKPOINT_PERIOD=1, **changes)


def test_earlier_checkpoints_survive_a_full_disk(tiny_shapes, tmp_path, capsys):
    assert run(tmp_path, SOLVER__MAX_ITER=1) == 0
    with files_no_larger_than(100_000):
        assert run(tmp_path, "--resume", SOLVER__MAX_ITER=3) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and "model_0000001.pth cannot be written" in last and "full" in last
    assert RunFolder(tmp_path).load_last()["iteration"] == 0
    assert run(tmp_path, "--resume", SOLVER__MAX_ITER=3) == 0


def test_a_full_disk_is_reported_before_the_first_step(tiny_shapes, tmp_path, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 1000, 1000))
    assert run(tmp_path) == 1
    assert f"error: OUTPUT_DIR {tmp_path} has 1e-06 GB free, but a checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.glob("model_*"))


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_checkpoint_bytes_is_close_to_the_file_size(tmp_path, optimizer):
    cfg = tiny_config(SOLVER__OPTIMIZER=optimizer)
    trainer = build_trainer(cfg, build_model(cfg))
    expected = checkpoint_bytes(trainer.model, trainer.optimizer)
    for parameter in trainer.parameters:
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    path = RunFolder(tmp_path).save("x.pth", {"model": trainer.model.state_dict(), **trainer.state_dict()})
    assert path.stat().st_size * 0.5 < expected < path.stat().st_size  # names and headers weigh much here


@pytest.mark.parametrize(
    ("error", "asks"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(f"process 1: [Errno {errno.EDQUOT}] Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_write_errors_mention_a_full_disk_if_likely_and_others_are_unchanged(error, asks):
    message = "x.pth cannot be written"
    with pytest.raises(TrainingError, match=message) as raised, write_errors_explained("x.pth"):
        raise error
    assert ("disk full" in str(raised.value)) == asks
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), write_errors_explained("x.pth"):
        raise RuntimeError("shapes differ")


def test_check_writable_leaves_files_alone_and_names_the_folder(tmp_path):
    (tmp_path / "probe").write_text("a user's")
    check_writable(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("probe", "a user's")]
    for name in ("probe", "probe/below"):
        with pytest.raises(OSError, match=rf"OUTPUT_DIR .*{name} cannot"):
            check_writable(tmp_path / name)


def test_a_name_that_tensorboard_cannot_write_to_is_an_error_before_the_first_step(tmp_path):
    with pytest.raises(OSError, match=r"OUTPUT_DIR .*new.* give another one, or set PYTHONUTF8=1"):
        check_writable(tmp_path / "new\udcf0")
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_reported_before_anything_else(tmp_path, capsys):
    with files_no_larger_than(0):
        assert run(tmp_path / "new", MODEL__WEIGHTS="nowhere.pth") == 1
    assert f"error: OUTPUT_DIR {tmp_path / 'new'} cannot be written to" in capsys.readouterr().err
