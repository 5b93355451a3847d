"""Two processes of Detectron2's launcher train and evaluate as one does, here on a CPU."""

import json

import pytest
import torch
from detectron2.engine import defaults, launch
from tiny_runs import CONFIG, tiny_options
from torch.multiprocessing import ProcessExitedException
from torch.nn.parallel import DistributedDataParallel

from mask2former.detectron2_host.running import work
from mask2former.tools.train import parse_arguments

FLAGS = ["--config-file", str(CONFIG)]


def parallelize(model, **options):
    """Wrap a model as Detectron2's function does, but on a CPU."""
    several = torch.distributed.is_initialized()
    return DistributedDataParallel(model, **options) if several else model


def work_on_cpu(args):
    """Train or evaluate in one process."""
    torch.set_num_threads(1)
    defaults.create_ddp_model = parallelize
    work(args, "cpu")


@pytest.fixture
def trained(tiny_shapes, tmp_path, monkeypatch):
    """Run the same training with one process and with two, and return number -> folder."""
    monkeypatch.setattr(defaults, "create_ddp_model", parallelize)
    folders = {count: tmp_path / str(count) for count in (1, 2)}
    for count, folder in folders.items():
        args = parse_arguments([*FLAGS, *tiny_options(OUTPUT_DIR=str(folder))])
        launch(work_on_cpu, count, dist_url="auto", args=(args,))
    return folders


def curve(folder):
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {name: value for line in lines for name, value in line.items() if "time" not in name}


def test_two_processes_give_the_results_of_one(trained):
    one, two = (curve(folder) for folder in trained.values())
    assert {"total_loss", "sem_seg/mIoU", "segm/AP", "panoptic_seg/PQ"} <= one.keys()
    assert two == pytest.approx(one, rel=1e-5, nan_ok=True)
    one, two = (torch.load(folder / "model_final.pth", weights_only=True) for folder in trained.values())
    for name, value in one["model"].items():
        torch.testing.assert_close(value, two["model"][name], rtol=1e-3, atol=1e-4, msg=name)
    wrong = tiny_options(
        OUTPUT_DIR=str(trained[2]),
        MODEL__WEIGHTS=str(trained[1] / "model_final.pth"),
        TEST__EXPECTED_RESULTS=[["panoptic_seg", "PQ", 1000.0, 0.1]],
    )
    with pytest.raises(ProcessExitedException):  # an exit code, not an exception in a process
        launch(work_on_cpu, 2, dist_url="auto", args=(parse_arguments([*FLAGS, "--eval-only", *wrong]),))
