"""Cityscapes' AP: compared with cityscapesscripts, of the evaluator, of saved files, and by boundaries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_command import score
from synthetic_cityscapes import (
    IDS,
    SIZE,
    CityscapesScripts,
    draw_images,
    instances,
    metadata,
    predict,
    records,
    save_found,
    save_truth,
    table_of,
)
from synthetic_evaluation import rle

from mask2former.evaluation.cityscapes.ap import CityscapesInstanceEvaluator, score_folders
from mask2former.evaluation.cityscapes.ground_truth import THINGS, read_instance_map
from mask2former.evaluation.coco.ap import average_precision


class SyntheticFiles:
    """Ground truth and predictions in files, and as a model and its loader hold them."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = draw_images(rng)
        self.found = {image_id: predict(ids, rng) for image_id, ids in self.images.items()}
        self.truth = save_truth(folder / "gtFine/val", self.images)
        self.records = records(self.truth, self.images)
        self.folder = folder

    def evaluate(self, things: range = range(8), as_runs: bool = False, **options: Any) -> dict[str, float]:
        """Return the evaluator's metrics of the predictions."""
        evaluator = CityscapesInstanceEvaluator(
            metadata=metadata(things), output_dir=self.folder / "inference", **options
        )
        for record, found in zip(self.records, self.found.values(), strict=True):
            evaluator.process([record], [instances(found, things[0], as_runs=as_runs)])
        return evaluator.evaluate()["segm"]


@pytest.mark.parametrize("seed", range(10))
def test_equals_cityscapesscripts(tmp_path, monkeypatch, seed):
    files = SyntheticFiles(tmp_path, seed)
    predictions = save_found(tmp_path / "found", files.found)
    official = CityscapesScripts(tmp_path / "official", monkeypatch).instances(files.truth, predictions)
    table = table_of([(files.images[image_id], files.found[image_id]) for image_id in IDS])
    np.testing.assert_allclose(table, official["resultApMatrix"][0], rtol=0, atol=1e-13)
    assert np.nanmax(table) > 0

    results = score_folders(files.truth, predictions)
    averages = official["averages"]
    assert results["AP"] == pytest.approx(100 * averages["allAp"])
    assert results["AP50"] == pytest.approx(100 * averages["allAp50%"])
    for name, values in averages["classes"].items():
        found = results[f"AP-{name}"], results[f"AP50-{name}"]
        assert found == pytest.approx((100 * values["ap"], 100 * values["ap50%"]), nan_ok=True)


@pytest.mark.parametrize("as_runs", [False, True])
@pytest.mark.parametrize("things", [range(8), range(11, 19)])
def test_evaluator_equals_the_command_and_cityscapesscripts(tmp_path, monkeypatch, things, as_runs):
    files = SyntheticFiles(tmp_path)
    results = files.evaluate(things, as_runs, save_predictions=True)
    assert results == pytest.approx(files.evaluate(things, as_runs), nan_ok=True) and 5 < results["AP"] < 95
    saved = tmp_path / "inference/submission/instance"
    folders = ["--gt-dir", files.truth, "--pred-dir", saved]
    assert score("cityscapes-instances", *folders, "--workers", 2) == pytest.approx(results, nan_ok=True)
    official = CityscapesScripts(tmp_path / "official", monkeypatch).instances(files.truth, saved)["averages"]
    assert results["AP"] == pytest.approx(100 * official["allAp"])
    assert results["AP50"] == pytest.approx(100 * official["allAp50%"])


def test_perfect_and_empty_predictions(tmp_path):
    files = SyntheticFiles(tmp_path)
    perfect = {
        image_id: [(ids == value, value // 1000, 0.5) for value in np.unique(ids).tolist() if value >= 1000]
        for image_id, ids in files.images.items()
    }
    for files.found, expected in ((perfect, 100), ({image_id: [] for image_id in IDS}, 0)):
        results = files.evaluate(boundary=True)
        names = ("AP", "AP50", "AP-car", "boundary_AP", "boundary_AP50")
        assert [results[name] for name in names] == [expected] * 5
    assert not (tmp_path / "inference").exists()  # nothing is written without save_predictions


def test_boundary_ap_is_that_of_the_same_objects_in_coco_format(tmp_path):
    files = SyntheticFiles(tmp_path)
    results = files.evaluate(boundary=True)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i} for i in THINGS]}
    for image_id, ids in files.images.items():
        truth["images"].append({"id": image_id, "height": SIZE[0], "width": SIZE[1]})
        for value in np.unique(ids).tolist():
            label, mask = value // 1000 if value >= 1000 else value, ids == value
            if label in THINGS:
                object_ = {"image_id": image_id, "category_id": label, "segmentation": rle(mask)}
                object_ |= {"area": int(mask.sum()), "iscrowd": int(value < 1000)}
                truth["annotations"].append(object_)
    found = [
        {"image_id": image_id, "category_id": label, "segmentation": rle(mask), "score": score}
        for image_id, objects in files.found.items()
        for mask, label, score in objects
        if label in THINGS
    ]
    expected = average_precision(truth, found, boundary_ratio=0.005)
    assert 0 < results["boundary_AP"] == pytest.approx(expected["AP"])
    assert results["boundary_AP50"] == pytest.approx(expected["AP50"])
    assert results["boundary_AP-car"] == pytest.approx(expected["AP-26"])
    saved = save_found(tmp_path / "found", files.found)
    assert score_folders(files.truth, saved, boundary=True) == pytest.approx(results, nan_ok=True)


def test_images_without_ground_truth_are_saved_and_not_scored(tmp_path):
    files = SyntheticFiles(tmp_path)
    record, output = {"image_id": "berlin_000000_000019"}, instances(files.found[IDS[0]])
    saving = CityscapesInstanceEvaluator(metadata=metadata(), output_dir=tmp_path, save_predictions=True)
    saving.process([record], [output])
    assert saving.evaluate() == {}
    assert (tmp_path / "submission/instance/berlin_000000_000019_pred.txt").is_file()
    with pytest.raises(ValueError, match="image berlin_000000_000019: no key 'instance_ids_file_name'"):
        CityscapesInstanceEvaluator(metadata=metadata()).process([record], [output])


def test_masks_of_an_earlier_evaluation_are_removed(tmp_path):
    files = SyntheticFiles(tmp_path)
    files.evaluate(save_predictions=True)
    files.found = {image_id: found[:1] for image_id, found in files.found.items()}
    files.evaluate(save_predictions=True)
    assert len(list((tmp_path / "inference").rglob("*.png"))) <= len(IDS)


def test_invalid_ground_truth_and_sizes_are_errors(tmp_path):
    files = SyntheticFiles(tmp_path)
    evaluator = CityscapesInstanceEvaluator(metadata=metadata())
    absent = {"image_id": "x", "instance_ids_file_name": str(tmp_path / "absent_instanceIds.png")}
    with pytest.raises(ValueError, match=r"absent_instanceIds\.png: no such file"):
        evaluator.process([absent], [instances([])])
    output = instances(files.found[IDS[0]])
    output["instances"].set("pred_masks", output["instances"].pred_masks[:, :-1])
    message = r"the prediction is \(47, 72\) pixels, .*instanceIds.png \(48, 72\)"
    with pytest.raises(ValueError, match=message):
        evaluator.process(files.records[:1], [output])
    for value, message in (
        (99, "instance id 99 is of label 99, which is unknown"),
        (7002, "instance id 7002 is an object of 'road', which"),
    ):
        save_truth(tmp_path / "bad", {"a_0_0": np.full((2, 2), value)})
        with pytest.raises(ValueError, match=rf"a_0_0_gtFine_instanceIds\.png: {message}"):
            read_instance_map(tmp_path / "bad/a/a_0_0_gtFine_instanceIds.png")


def test_a_class_that_the_dataset_lacks_is_an_error():
    facts = metadata()
    facts.thing_dataset_id_to_contiguous_id.pop(33)
    found = instances([(np.ones(SIZE, bool), 33, 0.5)])
    with pytest.raises(ValueError, match="the model predicted class 7, which is not in the dataset's thing_"):
        CityscapesInstanceEvaluator(metadata=facts).process([{"image_id": "x"}], [found])
    del facts.thing_dataset_id_to_contiguous_id
    with pytest.raises(ValueError, match="metadata of 'synthetic': 'thing_dataset_id_to_contiguous_id' is"):
        CityscapesInstanceEvaluator(metadata=facts)
