"""Runs with data, weights and output in flaky remote storage equal runs on a local disk."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from flaky_storage import FlakyStorage
from process_runs import assert_close, curve, until
from tiny_runs import run_train, tiny_config

from mask2former.engine.build import build_model
from mask2former.engine.checkpoint.run_folder import POINTER
from mask2former.utils.storage import path_manager

RUN = {"SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2, "TEST__EVAL_PERIOD": 3}
STORED = {**RUN, "MODEL__WEIGHTS": "flaky://weights.pth"}
OUTPUT = "flaky://runs/one"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(1)
    torch.save({"model": build_model(tiny_config()).state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def local_run(server, weights, tmp_path_factory):
    """Folder of a run with one process and local files."""
    folder = tmp_path_factory.mktemp("local_run")
    server.start(folder, **RUN, MODEL__WEIGHTS=weights).finish()
    return folder


@pytest.fixture
def environ(tiny_shapes, weights, tmp_path):
    """Environment in which everything lies in remote storage, the folder `store`."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/weights.pth").symlink_to(weights)
    (tmp_path / "store/datasets").symlink_to(tiny_shapes)
    return {
        "FLAKY_STORAGE": str(tmp_path / "store"),
        "FVCORE_CACHE": str(tmp_path / "cache"),
        "DETECTRON2_DATASETS": "flaky://datasets",
    }


def local_folders(environ):
    """Return the local folders that runs have left behind, one per machine."""
    return [path for path in Path(environ["FVCORE_CACHE"]).glob("runs/*") if path.is_dir()]


def test_a_run_of_two_machines_is_resumed_by_one(server, environ, local_run, tmp_path):
    # Sharded, so that each machine has a part of the checkpoint until it is copied
    folder = tmp_path / "store/runs/one"
    first, second = server.start_two_machines(OUTPUT, environ=environ, **STORED, SOLVER__STRATEGY="fsdp")
    until((folder / POINTER).exists)
    os.kill(second.children()[0], signal.SIGKILL)
    assert first.wait()[0] == 1
    assert (folder / POINTER).read_text().endswith(".sharded")
    log = server.start(OUTPUT, "--resume", environ=environ, **STORED).finish()
    assert "retrying" in log
    assert "resuming from" in (folder / "log.txt").read_text()
    assert_close(curve(folder), curve(local_run))
    assert (folder / "inference/panoptic/predictions.json").exists()
    (of_killed_machine,) = local_folders(environ)
    assert of_killed_machine.name.endswith("_1")


def test_a_kill_while_a_checkpoint_is_copied_does_no_harm(server, environ, local_run, tmp_path):
    folder = tmp_path / "store/runs/one"
    rng = random.Random(0)
    flags = ("--num-processes", "2", "--max-restarts", "1")
    command = server.start(OUTPUT, *flags, environ=environ, **STORED)
    until((folder / "model_0000001.pth").exists)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(rng.choice(command.children()), signal.SIGKILL)
    command.finish()
    assert_close(curve(folder), curve(local_run))
    assert (folder / POINTER).read_text() == "model_final.pth"


@pytest.fixture
def storage(environ, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    path_manager.register_handler(FlakyStorage())


def test_an_earlier_run_is_not_mixed_with_a_new_one(storage, tmp_path, capsys):
    earlier = tmp_path / "store/runs/two"
    earlier.mkdir(parents=True)
    (earlier / "model_final.pth").write_bytes(b"somebody's weights")
    assert run_train("flaky://runs/two", SOLVER__MAX_ITER=1) == 1
    assert (
        "OUTPUT_DIR flaky://runs/two holds an earlier run: --resume continues it" in capsys.readouterr().err
    )
    assert (earlier / "model_final.pth").read_bytes() == b"somebody's weights"


def test_a_url_that_cannot_be_written_to_is_reported_first(storage, tmp_path, capsys):
    (tmp_path / "store/file").touch()
    assert run_train("flaky://file/run", SOLVER__MAX_ITER=1) == 1
    printed = capsys.readouterr().err
    assert "OUTPUT_DIR flaky://file/run cannot be written to" in printed
    assert "steps 0 to" not in printed


def test_a_run_that_cannot_be_copied_is_kept_locally(storage, environ, capsys, monkeypatch):
    # The storage becomes unavailable when the first checkpoint is saved
    monkeypatch.setattr("mask2former.utils.storage.WAITS", (0.0,))
    steady = FlakyStorage([False])
    path_manager.register_handler(steady)
    monkeypatch.setattr(
        "mask2former.engine.checkpoint.run_folder.logger.info",
        lambda *_: path_manager.register_handler(FlakyStorage([True])),
    )
    assert run_train("flaky://runs/three", SOLVER__MAX_ITER=1, DATASETS__TEST=()) == 1
    (folder,) = local_folders(environ)
    message = capsys.readouterr().err
    assert "flaky://runs/three/job cannot be written" in message and f"It is in {folder}" in message
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 0
