"""Cityscapes' AP: its own evaluator as the oracle, our evaluator, what it saves, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapes_drawings import (
    IDS,
    SIZE,
    THINGS,
    Oracle,
    draw,
    find,
    instances,
    metadata,
    records,
    save_found,
    save_truth,
    table_of,
)
from evaluation_drawings import rle

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator, main, score_folders
from mask2former.evaluation.cityscapes.ground_truth import published_labels, read_instance_map
from mask2former.evaluation.coco import ap as coco_ap

LABELS = published_labels()
CAR, CARAVAN, ROAD = 26, 29, 7


class DrawnFiles:
    """Truth and predictions in files, and as a model and its loader hold them."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = {image_id: draw(rng) for image_id in IDS}
        self.found = {image_id: find(ids, rng) for image_id, ids in self.images.items()}
        self.truth = save_truth(folder / "gtFine/val", self.images)
        self.records = records(self.truth, self.images)
        self.folder = folder

    def evaluate(self, things: range = range(8), as_runs: bool = False, **options: Any) -> dict[str, float]:
        """What the evaluator says of the predictions, image by image."""
        evaluator = CityscapesInstanceEvaluator(
            metadata=metadata(things), output_dir=self.folder / "inference", **options
        )
        for record, found in zip(self.records, self.found.values(), strict=True):
            evaluator.process([record], [instances(found, things[0], as_runs=as_runs)])
        return evaluator.evaluate()["segm"]


@pytest.mark.parametrize("seed", range(10))
def test_equals_cityscapesscripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    drawn = DrawnFiles(tmp_path, seed)
    predictions = save_found(tmp_path / "found", drawn.found)
    official = Oracle(tmp_path / "oracle", monkeypatch).instances(drawn.truth, predictions)
    table = table_of([(drawn.images[image_id], drawn.found[image_id]) for image_id in IDS])
    np.testing.assert_allclose(table, official["resultApMatrix"][0], rtol=0, atol=1e-13)
    assert np.nanmax(table) > 0

    results = score_folders(drawn.truth, predictions)
    averages = official["averages"]
    assert results["AP"] == pytest.approx(100 * averages["allAp"])
    assert results["AP50"] == pytest.approx(100 * averages["allAp50%"])
    for name, values in averages["classes"].items():
        assert results[f"AP-{name}"] == pytest.approx(100 * values["ap"], nan_ok=True)
        assert results[f"AP50-{name}"] == pytest.approx(100 * values["ap50%"], nan_ok=True)


@pytest.mark.parametrize("as_runs", [False, True])
@pytest.mark.parametrize("things", [range(8), range(11, 19)])
def test_evaluator_equals_the_command_and_cityscapesscripts_on_what_it_saved(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    things: range,
    as_runs: bool,
) -> None:
    drawn = DrawnFiles(tmp_path)
    results = drawn.evaluate(things, as_runs, save_predictions=True)
    assert results == pytest.approx(drawn.evaluate(things, as_runs), nan_ok=True) and 5 < results["AP"] < 95
    saved = tmp_path / "inference/submission/instance"
    assert main(["--gt-dir", str(drawn.truth), "--pred-dir", str(saved), "--workers", "2", "--json"]) == 0
    from_files = json.loads(capsys.readouterr().out)
    assert {name: np.nan if v is None else v for name, v in from_files.items()} == pytest.approx(
        results, nan_ok=True
    )
    official = Oracle(tmp_path / "oracle", monkeypatch).instances(drawn.truth, saved)["averages"]
    assert results["AP"] == pytest.approx(100 * official["allAp"])
    assert results["AP50"] == pytest.approx(100 * official["allAp50%"])


def test_perfect_and_empty_predictions(tmp_path: Path) -> None:
    drawn = DrawnFiles(tmp_path)
    drawn.found = {
        image_id: [(ids == value, value // 1000, 0.5) for value in np.unique(ids).tolist() if value >= 1000]
        for image_id, ids in drawn.images.items()
    }
    perfect = drawn.evaluate(boundary=True)
    assert [perfect[name] for name in ("AP", "AP50", "AP-car", "boundary_AP", "boundary_AP50")] == [100] * 5
    drawn.found = {image_id: [] for image_id in IDS}
    empty = drawn.evaluate(boundary=True)
    assert [empty[name] for name in ("AP", "AP50", "AP-car", "boundary_AP", "boundary_AP50")] == [0] * 5


def test_boundary_ap_is_that_of_the_same_objects_as_coco_has_them(tmp_path: Path) -> None:
    drawn = DrawnFiles(tmp_path)
    results = drawn.evaluate(boundary=True)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i} for i in THINGS]}
    for image_id, ids in drawn.images.items():
        truth["images"].append({"id": image_id, "height": SIZE[0], "width": SIZE[1]})
        for value in np.unique(ids).tolist():
            label = value // 1000 if value >= 1000 else value
            if label in THINGS:
                truth["annotations"].append(
                    {
                        "image_id": image_id,
                        "category_id": label,
                        "segmentation": rle(ids == value),
                        "area": int((ids == value).sum()),
                        "iscrowd": int(value < 1000),
                    }
                )
    found = [
        {"image_id": image_id, "category_id": label, "segmentation": rle(mask), "score": score}
        for image_id, objects in drawn.found.items()
        for mask, label, score in objects
        if label in THINGS
    ]
    expected = coco_ap.average_precision(truth, found, boundary_ratio=0.005)
    assert 0 < results["boundary_AP"] == pytest.approx(expected["AP"])
    assert results["boundary_AP50"] == pytest.approx(expected["AP50"])
    assert results["boundary_AP-car"] == pytest.approx(expected["AP-26"])
    saved = save_found(tmp_path / "found", drawn.found)
    assert score_folders(drawn.truth, saved, boundary=True) == pytest.approx(results, nan_ok=True)


def test_images_without_a_truth_are_saved_and_not_scored(tmp_path: Path) -> None:
    drawn = DrawnFiles(tmp_path)
    secret, output = {"image_id": "berlin_000000_000019"}, instances(drawn.found[IDS[0]])
    saving = CityscapesInstanceEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    saving.process([secret], [output])
    assert saving.evaluate() == {}
    assert (tmp_path / "submission/instance/berlin_000000_000019_pred.txt").is_file()
    with pytest.raises(ValueError, match="image berlin_000000_000019: no key 'instance_ids_file_name'"):
        CityscapesInstanceEvaluator(metadata=metadata()).process([secret], [output])


def test_masks_of_an_earlier_evaluation_are_removed(tmp_path: Path) -> None:
    drawn = DrawnFiles(tmp_path)
    drawn.evaluate(save_predictions=True)
    drawn.found = {image_id: found[:1] for image_id, found in drawn.found.items()}
    drawn.evaluate(save_predictions=True)
    assert len(list((tmp_path / "inference").rglob("*.png"))) <= len(IDS)


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    DrawnFiles(tmp_path).evaluate(boundary=True)
    assert not (tmp_path / "inference").exists()


def test_bad_truth_and_sizes_are_named(tmp_path: Path) -> None:
    drawn = DrawnFiles(tmp_path)
    evaluator = CityscapesInstanceEvaluator(metadata=metadata())
    absent = {"image_id": "x", "instance_ids_file_name": str(tmp_path / "absent_instanceIds.png")}
    with pytest.raises(ValueError, match=r"absent_instanceIds\.png: no such file"):
        evaluator.process([absent], [instances([])])
    output = instances(drawn.found[IDS[0]])
    output["instances"].set("pred_masks", output["instances"].pred_masks[:, :-1])
    with pytest.raises(
        ValueError, match=r"the prediction is \(47, 72\) pixels, .*instanceIds.png \(48, 72\)"
    ):
        evaluator.process(drawn.records[:1], [output])
    for value, message in (
        (99, "instance id 99 is of label 99, which is unknown"),
        (7002, "instance id 7002 is an object of 'road', which"),
    ):
        save_truth(tmp_path / "bad", {"a_0_0": np.full((2, 2), value)})
        with pytest.raises(ValueError, match=rf"a_0_0_gtFine_instanceIds\.png: {message}"):
            read_instance_map(tmp_path / "bad/a/a_0_0_gtFine_instanceIds.png", LABELS)


def test_missing_metadata_and_classes_beyond_it_are_named(tmp_path: Path) -> None:
    facts = metadata()
    facts.thing_dataset_id_to_contiguous_id.pop(33)
    found = instances([(np.ones(SIZE, bool), 33, 0.5)])
    with pytest.raises(ValueError, match="the model found class 7, which is not in the data set's thing_"):
        CityscapesInstanceEvaluator(metadata=facts).process([{"image_id": "x"}], [found])
    facts.labels = [{"id": 1}]
    with pytest.raises(ValueError, match="metadata of 'drawn': labels: no key 'name'"):
        CityscapesInstanceEvaluator(metadata=facts)
    del facts.labels
    with pytest.raises(ValueError, match="metadata of 'drawn': 'labels' is missing"):
        CityscapesInstanceEvaluator(metadata=facts)
