"""Cityscapes' IoU and iIoU: compared with cityscapesscripts, by hand, of the evaluator and of saved files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from score_command import score, score_error
from synthetic_cityscapes import (
    CLASSES,
    IDS,
    SIZE,
    CityscapesScripts,
    draw_ids,
    draw_images,
    metadata,
    records,
    save_truth,
)

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap
from mask2former.evaluation.cityscapes.iou import (
    AVERAGE_SIZE,
    CityscapesSemSegEvaluator,
    count,
    iou_metrics,
    score_folders,
)
from mask2former.utils.cityscapes_labels import label_ids_of

OFFICIAL = {  # metric -> keys of its mean and of each value in the official report
    "IoU": ("averageScoreClasses", "classScores"),
    "iIoU": ("averageScoreInstClasses", "classInstScores"),
    "IoU_category": ("averageScoreCategories", "categoryScores"),
    "iIoU_category": ("averageScoreInstCategories", "categoryInstScores"),
}


def disturb(ids: np.ndarray, rng: np.random.Generator, labels: list[int]) -> np.ndarray:
    """Return a disturbed label map of `labels`: shifted, with boxes over it."""
    found = np.roll(label_ids_of(ids), rng.integers(-2, 3, 2), (0, 1))
    found[~np.isin(found, labels)] = rng.choice(labels)
    for _ in range(3):
        y, x = rng.integers(0, (40, 60))
        found[y : y + 15, x : x + 15] = rng.choice(labels)
    return found


def save_found(folder: Path, found: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, labels in found.items():
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"{image_id}_leftImg8bit.png")
    return folder


def assert_equal(results: dict[str, float], official: dict[str, Any]) -> None:
    """Assert that each metric has the official value, or is NaN there if we leave it out."""
    assert results["mIoU"] == results["IoU"]
    for metric, (mean, each) in OFFICIAL.items():
        assert results[metric] == pytest.approx(100 * official[mean], nan_ok=True, abs=1e-10)
        for name, value in official[each].items():
            ours = results.get(f"{metric}-{name}", np.nan)
            assert ours == pytest.approx(100 * value, nan_ok=True, abs=1e-10)
        reported = {name.partition("-")[2] for name in results if name.startswith(f"{metric}-")}
        assert reported <= official[each].keys()


@pytest.mark.parametrize("seed", range(8))
def test_equals_cityscapesscripts(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    images = draw_images(rng)
    truth = save_truth(tmp_path / "truth", images)
    labels = [*range(34)] if seed % 2 else [7, 24, 25, 26, 29, 30]  # ignored labels can be predicted too
    found = save_found(tmp_path / "found", {i: disturb(ids, rng, labels) for i, ids in images.items()})
    results = score_folders(truth, found)
    assert_equal(results, CityscapesScripts(tmp_path / "official", monkeypatch).pixels(truth, found))
    assert 1 < results["IoU"] < 99


def test_a_case_computed_by_hand():
    # Two cars of 4 and 2 pixels, of which 1 and 2 are found; one pixel of the road is predicted as bus
    ids = np.array([[26001, 26001, 26002, 7, 7], [26001, 26001, 26002, 7, 7]])
    pred = np.array([[26, 28, 26, 7, 28], [7, 7, 26, 7, 7]])
    truth = InstanceMap(ids, np.array([7, 26001, 26002]), np.array([7, 26, 26]), "synthetic")
    results = iou_metrics([count(truth, pred, "synthetic")])
    size = AVERAGE_SIZE["car"]
    expected = {
        "IoU-car": 100 * 3 / 6,
        "IoU-road": 100 * 3 / 6,
        "IoU-bus": 0,  # only predicted: counts as 0
        "IoU": 100 / 3,
        "IoU_category-vehicle": 100 * 4 / 7,
        "IoU_category-flat": 100 * 3 / 6,
        "iIoU-car": 100 * (1 / 4 + 1) / 2,
        "iIoU-bus": 0,
        "iIoU": 100 * (1 / 4 + 1) / 4,
        "iIoU_category": 100 * (2 / 4 + 1) * size / (2 * size + 1),  # the bus on the road is wrong
    }
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert np.isnan(results["IoU-person"]) and np.isnan(results["iIoU_category-human"])
    assert "iIoU_category-flat" not in results and "IoU_category-void" not in results


@pytest.mark.parametrize("kind", ["label_map", "sem_seg"])
def test_evaluator_equals_the_command_and_cityscapesscripts(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    images = draw_images(rng)
    truth = save_truth(tmp_path / "truth", images)
    found = [disturb(ids, rng, CLASSES) for ids in images.values()]
    maps = [torch.from_numpy(np.vectorize(CLASSES.index)(labels)) for labels in found]
    outputs: list[dict[str, Any]] = [{"label_map": labels.int()} for labels in maps]
    if kind == "sem_seg":
        outputs = [{"sem_seg": torch.stack([(labels == c).float() for c in range(19)])} for labels in maps]
    evaluator = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    evaluator.process(records(truth, images), outputs)
    results = evaluator.evaluate()["sem_seg"]

    saved = tmp_path / "submission/semantic"
    assert_equal(results, CityscapesScripts(tmp_path / "official", monkeypatch).pixels(truth, saved))
    from_files = score("cityscapes-semantic", "--gt-dir", truth, "--pred-dir", saved, "--workers", 2)
    assert from_files == pytest.approx(results, nan_ok=True)


def test_perfect_and_empty_predictions(tmp_path):
    rng = np.random.default_rng(0)
    images = draw_images(rng)
    inputs = records(save_truth(tmp_path / "truth", images), images)
    table = {label: place for place, label in enumerate(CLASSES)}
    contiguous = np.vectorize(lambda label: table.get(label, 255))
    perfect = [{"label_map": torch.from_numpy(contiguous(label_ids_of(ids)))} for ids in images.values()]
    evaluator = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path / "inference")
    for outputs, expected in ((perfect, 100), ([{"label_map": torch.full(SIZE, 255)}] * 3, 0)):
        evaluator.reset()
        evaluator.process(inputs, outputs)
        results = evaluator.evaluate()["sem_seg"]
        assert [results[name] for name in OFFICIAL] == pytest.approx([expected] * 4)
    assert not (tmp_path / "inference").exists()
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["sem_seg"]["IoU"])


def test_images_without_ground_truth_are_saved_and_not_counted(tmp_path):
    record, output = {"image_id": "berlin_000000_000019"}, {"label_map": torch.tensor([[0, 255], [18, 1]])}
    saving = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    saving.process([record], [output])
    assert saving.evaluate() == {}
    file = tmp_path / "submission/semantic/berlin_000000_000019_pred.png"
    assert np.asarray(Image.open(file)).tolist() == [[7, 0], [33, 8]]
    with pytest.raises(ValueError, match="image berlin_000000_000019: no key 'instance_ids_file_name'"):
        CityscapesSemSegEvaluator(metadata=metadata()).process([record], [output])


def test_invalid_predictions_are_errors(tmp_path):
    images = {IDS[0]: draw_ids(np.random.default_rng(0))}
    inputs = records(save_truth(tmp_path, images), images)
    evaluator = CityscapesSemSegEvaluator(metadata=metadata())
    with pytest.raises(ValueError, match="label 19 is not among the known labels"):
        evaluator.process(inputs, [{"label_map": torch.full(SIZE, 19)}])
    with pytest.raises(ValueError, match=r"the prediction is \(2, 2\) pixels, .*instanceIds.png \(48, 72\)"):
        evaluator.process(inputs, [{"label_map": torch.zeros(2, 2).long()}])
    facts = metadata()
    del facts.official_label_ids
    with pytest.raises(ValueError, match="metadata of 'synthetic': 'official_label_ids' is missing"):
        CityscapesSemSegEvaluator(metadata=facts)


def test_command_reports_bad_input_in_one_line(tmp_path):
    ids = np.array([[7, 26001]])
    truth = save_truth(tmp_path / "truth", {"a_0_0": ids})
    for name, found, message in [
        ("nothing", {}, "nothing: no file of the name a_0_0*.png"),
        ("small", {"a_0_0": ids[:, :1]}, "the prediction is (1, 1) pixels"),
        ("train_ids", {"a_0_0": np.array([[0, 255]])}, "a_0_0_leftImg8bit.png: label 255 is not"),
        ("two", {"a_0_0": ids, "a_0_0_b": ids}, "several files"),
    ]:
        folder = save_found(tmp_path / name, found)
        assert message in score_error("cityscapes-semantic", "--gt-dir", truth, "--pred-dir", folder)
