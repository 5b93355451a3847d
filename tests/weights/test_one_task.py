"""One task taken out of a model for several, as a function and by `mask2former convert` and `export`."""

import pytest
import torch
from tiny_checkpoint import METADATA, save_tiny_checkpoint

from mask2former import Predictor
from mask2former.config import config_from_text
from mask2former.engine.build import build_model
from mask2former.export.graph import Graph
from mask2former.modeling.postprocessing.inference import TASKS
from mask2former.tools import convert, export
from mask2former.utils.messages import InputError
from mask2former.weights.load import load_weights, read_checkpoint
from mask2former.weights.one_task import require_one_task

DECODER = "sem_seg_head.predictor."


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("run") / "joint.pth", tasks=TASKS)


def of_file(path):
    checkpoint = read_checkpoint(str(path))
    return config_from_text(checkpoint.config, checkpoint.file), checkpoint


@torch.no_grad()
def logits(cfg, checkpoint):
    model = build_model(cfg).eval()
    load_weights(model, checkpoint)
    return model, model.network(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)))


def test_a_model_of_one_task_predicts_what_the_model_of_all_tasks_does(joint):
    cfg, checkpoint = of_file(joint)
    _, every = logits(cfg, checkpoint)
    for place, task in enumerate(TASKS):
        model, alone = logits(*require_one_task(cfg, checkpoint, task))
        assert model.tasks == (task,) and not model.trained_tasks and not alone.tasks
        for found, expected in zip(alone.layers[-1][:3], every.layers[-1][:3], strict=True):
            assert torch.allclose(found, expected.chunk(3, 1)[place], atol=1e-5)
    assert "sem_seg_head.predictor.task_feat.weight" in checkpoint.model  # the file's own stay


def test_convert_writes_one_task_as_a_checkpoint_and_as_a_folder(joint, tmp_path, capsys):
    one, folder = tmp_path / "one.pth", tmp_path / "folder"
    assert convert.main([str(joint), str(one), "--task", "panoptic"]) == 0
    assert convert.main([str(joint), str(folder), "--task", "panoptic"]) == 0
    _, expected = require_one_task(*of_file(joint), "panoptic")
    for path in (one, folder):
        cfg, found = of_file(path)
        assert cfg.SOLVER.TASKS == () and found.metadata["thing_ids"] == METADATA["thing_ids"]
        assert Predictor(str(path)).model.tasks == ("panoptic",)
    found = read_checkpoint(str(one)).model
    assert found.keys() == expected.model.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.model.items())
    assert convert.main([str(joint), str(one), "--task", "panoptic"]) == 1
    assert "one.pth exists; --overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "flags"), [(convert.main, ["{}/folder"]), (export.main, ["--format", "torch"])]
)
def test_the_commands_ask_for_the_task(joint, tmp_path, capsys, run, flags):
    flags = [flag.format(tmp_path) for flag in flags]
    assert run([str(joint), *flags]) == 1
    error = capsys.readouterr().err
    assert "joint.pth is a model for several tasks; add --task TASK, one of semantic, inst" in error
    plain = save_tiny_checkpoint(tmp_path / "plain.pth")
    assert run([str(plain), *flags, "--task", "semantic"]) == 1
    assert (
        "plain.pth is no model for several tasks (SOLVER.TASKS); leave --task out" in capsys.readouterr().err
    )


def test_a_task_that_the_model_lacks_is_named(joint):
    cfg, checkpoint = of_file(joint)
    cfg.SOLVER.TASKS = ("semantic", "instance")
    with pytest.raises(ValueError, match=r"--task is panoptic, one of semantic, instance$"):
        require_one_task(cfg, checkpoint, "panoptic")


def test_a_graph_of_several_tasks_is_refused(joint):
    model, _ = logits(*of_file(joint))
    with pytest.raises(InputError, match=r"several tasks \(semantic, instance, panoptic\).*--task TASK$"):
        Graph(model)
