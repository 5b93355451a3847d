"""Cityscapes' IoU and iIoU: its own evaluator as the oracle, a case by hand, evaluator and command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cityscapes_drawings import CLASSES, IDS, SIZE, Oracle, draw, metadata, records, save_truth
from PIL import Image

from mask2former.evaluation.cityscapes.ground_truth import InstanceMap, published_labels
from mask2former.evaluation.cityscapes.iou import (
    AVERAGE_SIZE,
    CityscapesSemSegEvaluator,
    count,
    iou_metrics,
    main,
    score_folders,
)

LABELS = published_labels()
MEANS = {
    "IoU": "averageScoreClasses",
    "iIoU": "averageScoreInstClasses",
    "IoU_category": "averageScoreCategories",
    "iIoU_category": "averageScoreInstCategories",
}
EACH = {
    "IoU": "classScores",
    "iIoU": "classInstScores",
    "IoU_category": "categoryScores",
    "iIoU_category": "categoryInstScores",
}


def labels_of(ids: np.ndarray) -> np.ndarray:
    return np.where(ids < 1000, ids, ids // 1000)


def disturb(ids: np.ndarray, rng: np.random.Generator, labels: list[int]) -> np.ndarray:
    """A label map like the ground truth: shifted, made of `labels` alone, with boxes of them over it."""
    found = np.roll(labels_of(ids), rng.integers(-2, 3, 2), (0, 1))
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
    """Each metric is reported by both with the same value, in percent, or is NaN in the official report."""
    assert results["mIoU"] == results["IoU"]
    for metric, mean in MEANS.items():
        assert results[metric] == pytest.approx(100 * official[mean], nan_ok=True, abs=1e-10)
        for name, value in official[EACH[metric]].items():
            assert results.get(f"{metric}-{name}", np.nan) == pytest.approx(
                100 * value, nan_ok=True, abs=1e-10
            )
        reported = {name.partition("-")[2] for name in results if name.startswith(f"{metric}-")}
        assert reported <= official[EACH[metric]].keys()


@pytest.mark.parametrize("seed", range(8))
def test_equals_cityscapesscripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {image_id: draw(rng) for image_id in IDS}
    truth = save_truth(tmp_path / "truth", images)
    every = [*range(34)] if seed % 2 else [7, 24, 25, 26, 29, 30]  # ignored ones, too, can be predicted
    found = save_found(tmp_path / "found", {i: disturb(ids, rng, every) for i, ids in images.items()})
    results = score_folders(truth, found)
    assert_equal(results, Oracle(tmp_path / "oracle", monkeypatch).pixels(truth, found))
    assert 1 < results["IoU"] < 99


def test_a_case_worked_out_by_hand() -> None:
    # Two cars of 4 and 2 pixels, of which 1 and 2 are found; of the road a pixel is taken for a bus
    ids = np.array([[26001, 26001, 26002, 7, 7], [26001, 26001, 26002, 7, 7]])
    pred = np.array([[26, 28, 26, 7, 28], [7, 7, 26, 7, 7]])
    truth = InstanceMap(ids, np.array([7, 26001, 26002]), np.array([7, 26, 26]), "drawn")
    results = iou_metrics(count(truth, pred, LABELS, "drawn"), LABELS)
    size = AVERAGE_SIZE["car"]
    expected = {
        "IoU-car": 100 * 3 / 6,
        "IoU-road": 100 * 3 / 6,
        "IoU-bus": 0,  # predicted only: counts as 0
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


def model_outputs(found: dict[str, np.ndarray], kind: str) -> list[dict[str, Any]]:
    """What a model would return for maps of evaluated labels, by contiguous classes."""
    maps = [torch.from_numpy(np.vectorize(CLASSES.index)(labels)) for labels in found.values()]
    if kind == "label_map":
        return [{"label_map": labels.int()} for labels in maps]
    return [{"sem_seg": torch.stack([(labels == c).float() for c in range(19)])} for labels in maps]


@pytest.mark.parametrize("kind", ["label_map", "sem_seg"])
def test_evaluator_equals_the_command_and_cityscapesscripts_on_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    rng = np.random.default_rng(0)
    images = {image_id: draw(rng) for image_id in IDS}
    truth = save_truth(tmp_path / "truth", images)
    outputs = model_outputs({i: disturb(ids, rng, CLASSES) for i, ids in images.items()}, kind)
    evaluator = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    evaluator.process(records(truth, images), outputs)
    results = evaluator.evaluate()["sem_seg"]

    saved = tmp_path / "submission/semantic"
    assert_equal(results, Oracle(tmp_path / "oracle", monkeypatch).pixels(truth, saved))
    assert main(["--gt-dir", str(truth), "--pred-dir", str(saved), "--json"]) == 0
    from_files = json.loads(capsys.readouterr().out)
    assert {name: np.nan if v is None else v for name, v in from_files.items()} == pytest.approx(
        results, nan_ok=True
    )


def test_perfect_and_empty_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {image_id: draw(rng) for image_id in IDS}
    inputs = records(save_truth(tmp_path / "truth", images), images)
    table = {label: place for place, label in enumerate(CLASSES)}
    contiguous = np.vectorize(lambda label: table.get(label, 255))
    perfect = [{"label_map": torch.from_numpy(contiguous(labels_of(ids)))} for ids in images.values()]
    evaluator = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path / "inference")
    for outputs, expected in ((perfect, 100), ([{"label_map": torch.full(SIZE, 255)}] * 3, 0)):
        evaluator.reset()
        evaluator.process(inputs, outputs)
        results = evaluator.evaluate()["sem_seg"]
        assert [results[name] for name in MEANS] == pytest.approx([expected] * 4)
    assert not (tmp_path / "inference").exists()
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["sem_seg"]["IoU"])


def test_images_without_a_truth_are_saved_and_not_counted(tmp_path: Path) -> None:
    secret, output = {"image_id": "berlin_000000_000019"}, {"label_map": torch.tensor([[0, 255], [18, 1]])}
    saving = CityscapesSemSegEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    saving.process([secret], [output])
    assert saving.evaluate() == {}
    file = tmp_path / "submission/semantic/berlin_000000_000019_pred.png"
    assert np.asarray(Image.open(file)).tolist() == [[7, 0], [33, 8]]
    with pytest.raises(ValueError, match="image berlin_000000_000019: no key 'instance_ids_file_name'"):
        CityscapesSemSegEvaluator(metadata=metadata()).process([secret], [output])


def test_bad_predictions_are_named(tmp_path: Path) -> None:
    images = {IDS[0]: draw(np.random.default_rng(0))}
    inputs = records(save_truth(tmp_path, images), images)
    evaluator = CityscapesSemSegEvaluator(metadata=metadata())
    with pytest.raises(ValueError, match="label 19 is not among the known labels"):
        evaluator.process(inputs, [{"label_map": torch.full(SIZE, 19)}])
    with pytest.raises(ValueError, match=r"the prediction is \(2, 2\) pixels, .*instanceIds.png \(48, 72\)"):
        evaluator.process(inputs, [{"label_map": torch.zeros(2, 2).long()}])
    facts = metadata()
    del facts.official_label_ids
    with pytest.raises(ValueError, match="metadata of 'drawn': 'official_label_ids' is missing"):
        CityscapesSemSegEvaluator(metadata=facts)


def test_command_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {"a_0_0": np.array([[7, 26001]])}
    truth = save_truth(tmp_path / "truth", images)
    (tmp_path / "nothing").mkdir()
    for found, message in [
        (tmp_path / "nothing", "nothing: no file of the name a_0_0*.png"),
        (save_found(tmp_path / "one", {"a_0_0": np.array([[7]])}), "the prediction is (1, 1) pixels"),
        (
            save_found(tmp_path / "train", {"a_0_0": np.array([[0, 255]])}),
            "a_0_0_leftImg8bit.png: label 255 is not",
        ),
        (
            save_found(tmp_path / "two", {"a_0_0": images["a_0_0"], "a_0_0_b": images["a_0_0"]}),
            "several files",
        ),
    ]:
        assert main(["--gt-dir", str(truth), "--pred-dir", str(found)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
