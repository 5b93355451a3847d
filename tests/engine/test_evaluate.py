"""The evaluators of a dataset, and TEST.EXPECTED_RESULTS."""

from collections import OrderedDict

import pytest
import torch
from tiny_runs import tiny_config

from mask2former.data import DatasetCatalog, MetadataCatalog, register_coco_panoptic
from mask2former.engine.build import build_model
from mask2former.engine.evaluate import TASKS, Evaluation, build_evaluator, evaluate, verify_results
from mask2former.engine.hooks.standard import flatten_results, last_layer

RESULTS = OrderedDict(segm={"AP": 40.0, "AP50": float("nan")}, sem_seg={"mIoU": 50.0})


def verdict(*rows, results=RESULTS):
    cfg = tiny_config()
    cfg.TEST.EXPECTED_RESULTS = list(rows)
    return verify_results(cfg, results)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([], True),
        ([["segm", "AP", 40.5, 0.5], ["sem_seg", "mIoU", 49.0, 1.0]], True),
        ([["segm", "AP", 40.5, 0.4]], False),
        ([["sem_seg", "mIoU", 50.0, 0.0], ["segm", "AP", 10.0, 1.0]], False),
        ([["segm", "AP50", 40.0, 100.0]], False),  # NaN is within no tolerance
        ([["panoptic_seg", "PQ", 50.0, 100.0]], False),
    ],
)
def test_expected_results(rows, good):
    assert verdict(*rows) is good


@pytest.mark.parametrize("row", [["segm", "AP", 40.0], ["segm", 40.0, "AP", 1.0], "segm", 40.0])
def test_an_invalid_row_of_expected_results_is_an_error(row):
    with pytest.raises(ValueError, match=r"TEST\.EXPECTED_RESULTS has .*, not \['task', 'metric', value"):
        verdict(row)


def test_results_of_several_datasets_are_expected_by_dataset():
    row = ["mine/segm", "AP", 40.0, 0.1]
    assert verdict(row, results=OrderedDict(mine=RESULTS, other=OrderedDict()))
    assert not verdict(row, results=OrderedDict(mine=OrderedDict(), other=RESULTS))


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ("telepathy", r"'mine' has evaluator_type 'telepathy'; known are: coco, sem_seg"),
        ("coco", r"'mine' \(coco\) has no metric .* semantic, panoptic"),
    ],
)
def test_an_unknown_evaluator_and_one_without_a_metric_for_the_model_are_errors(tmp_path, evaluator, message):
    MetadataCatalog.get("mine").set(evaluator_type=evaluator)
    with pytest.raises(ValueError, match=message):
        build_evaluator(tiny_config(MODEL__MASK_FORMER__TEST__INSTANCE_ON=False), "mine", tmp_path)


def test_without_instance_annotations_there_is_no_ap(tiny_shapes, tmp_path):
    root = tiny_shapes / "shapes"
    places = (root / "val", root / "panoptic_val", root / "annotations/panoptic_val.json")
    register_coco_panoptic("no_instances", {}, *places)
    cfg = tiny_config(DATASETS__TRAIN=(), DATASETS__TEST=("no_instances",))
    assert list(evaluate(cfg, build_model(cfg), tmp_path)) == ["sem_seg", "panoptic_seg"]


def test_missing_datasets_and_files_are_found_before_training(tiny_shapes, tmp_path):
    with pytest.raises(ValueError, match="no dataset is called 'shapes_val'"):
        Evaluation(tiny_config(DATASETS__TEST=("shapes_val",)), tmp_path)
    with pytest.raises(ValueError, match=r"coco/annotations/instances_val2017.json does not exist"):
        Evaluation(tiny_config(DATASETS__TEST=("coco_2017_val",)), tmp_path)


def test_an_evaluation_reads_its_files_once_and_can_be_repeated(tiny_shapes, tmp_path, monkeypatch):
    cfg = tiny_config()
    model = build_model(cfg)
    evaluation = Evaluation(cfg, tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # where there are no datasets
    monkeypatch.setattr(DatasetCatalog, "get", None)
    first, second = (flatten_results(evaluation(model)) for _ in range(2))
    assert first == pytest.approx(second, nan_ok=True) and "panoptic_seg/PQ" in first


@pytest.mark.parametrize(("task", "metrics"), [("semantic", "sem_seg"), ("panoptic", "panoptic_seg")])
def test_one_task_alone_is_evaluated_alone(tiny_shapes, tmp_path, task, metrics):
    switches = {f"MODEL__MASK_FORMER__TEST__{name.upper()}_ON": name == task for name in TASKS}
    cfg = tiny_config(**switches)
    assert list(evaluate(cfg, build_model(cfg), tmp_path)) == [metrics]


class Foreign(torch.nn.Module):
    """A model of another project, which is only called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        outputs = self.model(inputs)
        assert all("sem_seg" in output and output["instances"].pred_masks.dim() == 3 for output in outputs)
        return outputs


def test_compact_and_dense_results_get_the_same_scores(tiny_shapes, tmp_path):
    cfg = tiny_config()
    model = build_model(cfg)
    found, expected = evaluate(cfg, model, tmp_path / "a"), evaluate(cfg, Foreign(model), tmp_path / "b")
    assert flatten_results(found) == pytest.approx(flatten_results(expected), nan_ok=True)
    for name in ("coco_instances_results.json", "sem_seg_predictions.json", "panoptic/predictions.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_several_datasets_are_kept_apart(tiny_shapes, tmp_path):
    cfg = tiny_config(DATASETS__TEST=("shapes_panoptic_val", "shapes_panoptic_train"))
    results = evaluate(cfg, build_model(cfg), tmp_path)
    assert list(results) == list(cfg.DATASETS.TEST)
    assert "shapes_panoptic_train/segm/AP" in flatten_results(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(cfg.DATASETS.TEST)


def test_losses_of_the_last_layer_have_no_number():
    losses = {"loss_ce": 1.0, "loss_ce_0": 2.0, "loss_mask_8": 3.0, "loss_dice": 4.0}
    assert last_layer(losses) == {"loss_ce": 1.0, "loss_dice": 4.0}
