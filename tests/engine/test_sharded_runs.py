"""Runs that are interrupted and resumed by another number of processes."""

import json
import os
import shutil

import pytest
import torch
from process_groups import Job, run_in_worlds
from process_runs import curve
from tiny_runs import tiny_config
from torch.distributed.tensor import DTensor

from mask2former.engine.build import build_model, construct_model
from mask2former.engine.checkpoint.remote import run_folder
from mask2former.engine.checkpoint.run_folder import FINAL, POINTER
from mask2former.engine.checkpoint.sharded import PATH, load_tensors
from mask2former.engine.evaluate import evaluate_checkpoint
from mask2former.engine.parallel import parallelize
from mask2former.engine.setup.begin import Run
from mask2former.engine.setup.resolve import resolve_config
from mask2former.engine.train import train
from mask2former.predictor import Predictor
from mask2former.utils.comm import is_main_process
from mask2former.weights.load import WeightsError, restore_weights

FIRST = "model_0000001"  # checkpoint after two steps of four
DDP, FSDP = "ddp", "fsdp"
RESUMED = {  # run -> run to resume, number of processes, strategy
    "2 to 1": ("two", 1, DDP),
    "2 to 4": ("two", 4, FSDP),
    "2 to 2, replicated": ("two", 2, DDP),
    "1 to 2": ("one", 2, FSDP),
}


def config(folder, strategy, weights=""):
    options = {"SOLVER__STRATEGY": strategy, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__CHECKPOINT_PERIOD": 2}
    options["SOLVER__EMA_DECAY"] = 0.3
    return resolve_config(tiny_config(OUTPUT_DIR=folder, MODEL__WEIGHTS=weights, VIS_PERIOD=4, **options))


def run_in(folder, resume=False):
    run = Run(run_folder(str(folder)), is_continued=resume)
    run.saved = run.folder.load_last() if resume else None
    return run


def train_run(datasets, folder, strategy, resume=False):
    """Train from `start.pth`, which only the main process can see."""
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    weights = folder.parent / ("start.pth" if is_main_process() else "not there")
    train(config(folder, strategy, weights), run_in(folder, resume))


def write_start(file):
    torch.manual_seed(11)
    torch.save({"model": build_model(config(file.parent, DDP)).state_dict()}, file)


def copy_first_checkpoint(run, folder):
    """Create `folder` as `run` was after its first checkpoint."""
    (saved,) = run.glob(f"{FIRST}.*")
    folder.mkdir()
    copy = shutil.copytree if saved.is_dir() else shutil.copy
    copy(saved, folder / saved.name)
    (folder / POINTER).write_text(saved.name)


def copy_and_resume(datasets, run, folder, strategy):
    if is_main_process():
        copy_first_checkpoint(run, folder)
    torch.distributed.barrier()
    train_run(datasets, folder, strategy, resume=True)


def evaluate_resumed(datasets, folder, file):
    """Do what --eval-only --resume does."""
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    results = evaluate_checkpoint(config(folder, FSDP), run_in(folder, resume=True))
    if is_main_process():
        file.write_text(json.dumps(results))


def resume_with_nan(datasets, run, folder):
    """Resume a sharded checkpoint in which one process's part of the weights has a NaN."""
    if is_main_process():
        copy_first_checkpoint(run, folder)
    torch.distributed.barrier()
    resumed = run_in(folder, resume=True)
    cfg = config(folder, FSDP)
    model = parallelize(cfg, construct_model(cfg))
    weights = load_tensors(resumed.saved, model.state_dict())["model"]
    name = next(name for name, tensor in weights.items() if isinstance(tensor, DTensor))
    if not is_main_process():
        weights[name].to_local().fill_(torch.nan)
    with pytest.raises(WeightsError, match=rf"{FIRST}\.sharded: '{name}' holds nan"):
        restore_weights(model, weights, resumed.saved[PATH])


@pytest.fixture(scope="module")
def runs(tiny_shapes, tmp_path_factory):
    """Folder of all runs: `one`, `two`, and the resumed ones."""
    root = tmp_path_factory.mktemp("runs")
    write_start(root / "start.pth")
    train_run(tiny_shapes, root / "one", FSDP)
    jobs = [Job(2, train_run, (tiny_shapes, root / "two", FSDP))]
    for name, (source, processes, strategy) in RESUMED.items():
        folders = (root / source, root / name)
        if processes > 1:
            jobs.append(Job(processes, copy_and_resume, (tiny_shapes, *folders, strategy)))
    jobs.append(Job(2, resume_with_nan, (tiny_shapes, root / "two", root / "NaN")))
    run_in_worlds(jobs, root)
    for name, (source, processes, strategy) in RESUMED.items():
        if processes == 1:
            copy_first_checkpoint(root / source, root / name)
            train_run(tiny_shapes, root / name, strategy, resume=True)
    return root


def final(folder):
    return torch.load(folder / FINAL, weights_only=True)


def test_a_sharded_run_leaves_shards_and_one_final_file(runs):
    shards = runs / "two" / f"{FIRST}.sharded"
    assert {"run.pth", ".metadata"} < {path.name for path in shards.iterdir()}
    sizes = [sum(f.stat().st_size for f in shards.glob(f"__{rank}_*.distcp")) for rank in range(2)]
    assert min(sizes) > 0.4 * sum(sizes)  # each wrote about half
    assert (runs / "two" / POINTER).read_text() == FINAL and not list((runs / "two").glob("*unfinished*"))
    assert final(runs / "two").keys() == final(runs / "one").keys()
    assert (runs / "two" / "images" / "step_0000003.jpg").is_file()


@pytest.mark.parametrize("name", ["two", *RESUMED])
def test_curve_weights_and_results_equal_those_of_one_process(runs, name):
    assert len(curve(runs / "one")) == 2  # losses, results
    for expected, found in zip(curve(runs / "one"), curve(runs / name), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)
    expected, found = final(runs / "one"), final(runs / name)
    assert found["iteration"] == expected["iteration"] == 3
    assert not all(torch.equal(expected["model"][k], tensor) for k, tensor in expected["unaveraged"].items())
    for kind in ("model", "unaveraged"):
        assert found[kind].keys() == expected[kind].keys()
        for key, tensor in expected[kind].items():
            torch.testing.assert_close(found[kind][key], tensor, rtol=1e-3, atol=3e-4, msg=key)
    states = [content["optimizer"]["state"] for content in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        for key, tensor in state.items():
            torch.testing.assert_close(states[0][number][key], tensor, rtol=2e-2, atol=1e-3, msg=key)


def test_the_final_file_is_enough_for_the_predictor(runs):
    predictor = Predictor(str(runs / "two" / FINAL))
    expected = final(runs / "two")["model"]
    for name, tensor in predictor.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_sharded_checkpoint_is_evaluated_like_a_file(runs, tiny_shapes, tmp_path):
    found = []
    for source in ("one", "two"):
        copy_first_checkpoint(runs / source, tmp_path / source)
        evaluate_resumed(tiny_shapes, tmp_path / source, tmp_path / f"{source}.json")
        found.append(json.loads((tmp_path / f"{source}.json").read_text()))
    assert found[0].keys() == found[1].keys() != set()
    for task, metrics in found[0].items():
        assert found[1][task] == pytest.approx(metrics, rel=1e-3, abs=1e-3, nan_ok=True)
