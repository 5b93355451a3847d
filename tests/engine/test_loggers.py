"""Loggers besides metrics.json, read back with the libraries themselves, offline."""

import json
import math
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from process_runs import curve
from tiny_runs import run_train

from mask2former.config import get_cfg
from mask2former.engine import loggers
from mask2former.engine.loggers import MlflowLogger, WandbLogger

IMAGE = np.full((4, 6, 3), 200, np.uint8)
VALUES = {"total_loss": 2.0, "segm/AP-traffic light (3)": 5.0, "segm/AP-交通灯, ok?": math.nan}
RUN = {"SOLVER__MAX_ITER": 2, "VIS_PERIOD": 2, "DATASETS__TEST": "('shapes_panoptic_val',)"}


@pytest.fixture
def offline(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def write_and_resume(logger, folder):
    """Write two steps, and the second again in a resumed run; return the kept id of each run."""
    ids = []
    for start, steps in ((0, (3, 7)), (5, (7,))):
        run = logger(folder, start, get_cfg())
        for step in steps:
            run.write(step, VALUES)
            run.write_image(step, "target, prediction", IMAGE)
        run.close()
        ids.append(json.loads((folder / "loggers.json").read_text()))
    return ids


def mlflow_run(folder):
    """Return a client and the only run of the database in the folder."""
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mask2former").experiment_id])
    return client, run


def test_a_resumed_run_is_one_run_of_mlflow(tmp_path, offline):
    pytest.importorskip("mlflow")
    first, second = write_and_resume(MlflowLogger, tmp_path)
    client, run = mlflow_run(tmp_path)
    assert first == second == {"mlflow": run.info.run_id} and run.info.status == "FINISHED"
    names = {"total_loss": 2.0, "segm/AP-traffic light _3_": 5.0, "segm/AP-交通灯_ ok_": math.nan}
    assert run.data.metrics.keys() == names.keys()
    for name, value in names.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert {metric.step for metric in history} == {3, 7}
        assert all(metric.value == pytest.approx(value, nan_ok=True) for metric in history)
    assert list((tmp_path / "mlflow").rglob("*.png")) and list((tmp_path / "mlflow").rglob("config.yaml"))


def test_an_mlflow_server_that_fails_in_a_run_causes_a_warning(tmp_path, offline, caplog):
    pytest.importorskip("mlflow")
    run = MlflowLogger(tmp_path, 0, get_cfg())
    run.id = "0" * 32
    run.write(1, VALUES)
    assert "MLflow: " in caplog.text and "0" * 32 in caplog.text


def wandb_records(file):
    """Yield the records of a file of W&B, which offers no reader: LevelDB's log format after 7 bytes."""
    data, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # no chunk begins in the last bytes of a block
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_history(folder):
    """Return the lines of all offline runs in the folder, as id and name -> JSON."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, wandb_records(file)):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if items:
                found.append((file.stem, items))
    return found


def test_a_resumed_run_is_one_run_of_wandb(tmp_path, offline):
    pytest.importorskip("wandb")
    first, second = write_and_resume(WandbLogger, tmp_path)
    assert first == second
    history = wandb_history(tmp_path)
    assert {name for name, _ in history} == {f"run-{first['wandb']}"}
    scalars = [items for _, items in history if "total_loss" in items]
    assert [(json.loads(i["iteration"]), json.loads(i["total_loss"])) for i in scalars] == [
        *((3, 2.0), (7, 2.0), (7, 2.0))
    ]
    assert len(list(tmp_path.glob("wandb/*/files/media/images/*.png"))) >= 3


def test_a_training_run_writes_to_all_loggers(tiny_shapes, tmp_path, offline):
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    assert run_train(tmp_path, LOGGERS="['mlflow', 'wandb', 'tensorboard']", **RUN) == 0
    _, run = mlflow_run(tmp_path)
    history = [items for _, items in wandb_history(tmp_path)]
    for line in curve(tmp_path):
        step = line.pop("iteration")
        (items,) = [i for i in history if line.keys() <= i.keys() and json.loads(i["iteration"]) == step]
        for name, value in line.items():
            assert run.data.metrics[loggers._mlflow_name(name)] == pytest.approx(value, nan_ok=True)
            assert json.loads(items[name]) == pytest.approx(value, nan_ok=True)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_without_loggers_there_is_metrics_json_alone(tiny_shapes, tmp_path):
    assert run_train(tmp_path, LOGGERS="[]", **RUN) == 0
    assert curve(tmp_path) and not list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["nothing", "a folder"])
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, capsys, monkeypatch, spec):
    monkeypatch.setattr(loggers, "find_spec", lambda name: spec)
    assert run_train(tmp_path, LOGGERS="['wandb']", **{**RUN, "DATASETS__TRAIN": "('missing',)"}) == 1
    expected = "LOGGERS has 'wandb', which is not installed: pip install 'mask2former[wandb]'"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {expected}"


def test_an_unknown_logger_is_an_error(tmp_path, capsys):
    assert run_train(tmp_path, LOGGERS="['comet']", **RUN) == 1
    expected = "error: LOGGERS has 'comet'; known are: tensorboard, wandb, mlflow"
    assert capsys.readouterr().err.splitlines()[-1] == expected
