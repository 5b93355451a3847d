"""Panoptic quality of files and of the evaluator, compared with official results and cityscapesscripts."""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from score_command import score, score_error
from synthetic_cityscapes import CityscapesScripts
from synthetic_evaluation import CATEGORIES, EITHER_IDS, SyntheticDataset, metrics_of, save_ids, save_panoptic

from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator, panoptic_quality

FLAGS = ("--gt-json", "--gt-dir", "--pred-json", "--pred-dir")


def flagged(files: Iterable[object]) -> list[object]:
    return [*chain(*zip(FLAGS, files, strict=True))]


@pytest.mark.parametrize("workers", [1, 3])
def test_official_answer_on_real_images(shared, workers):
    sample = shared / "data/samples/panopticapi_sample"
    golden = sample / "golden_pq"
    truth = sample / "panoptic_examples.json", sample / "panoptic_examples"
    results = panoptic_quality(*truth, golden / "pred.json", golden / "pred", workers=workers)
    expected = json.loads((golden / "expected.json").read_text())["All"]
    assert results["n"] == expected["n"]
    for name in ("PQ", "SQ", "RQ"):
        assert results[name] == pytest.approx(100 * expected[name.lower()], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_equals_cityscapesscripts(tmp_path, monkeypatch, seed):
    dataset = SyntheticDataset(tmp_path, image_ids=range(12), seed=seed)
    content = json.loads(dataset.json.read_text())
    for annotation in content["annotations"]:  # wrong areas, as ADE20K has them
        for segment in annotation["segments_info"][::3]:
            segment["area"] += 5
    dataset.json.write_text(json.dumps(content))
    pred_json, pred_dir = save_panoptic(tmp_path / "pred", dataset.disturbed)

    official = CityscapesScripts(tmp_path / "official", monkeypatch)
    expected = official.panoptic(dataset.json, dataset.pngs, pred_json, pred_dir)
    results = panoptic_quality(dataset.json, dataset.pngs, pred_json, pred_dir)
    assert 5 < results["PQ_th"] < 95
    assert {name: results[name] for name in expected} == pytest.approx(expected, abs=1e-9)


@EITHER_IDS
def test_perfect_and_empty_predictions_through_files(tmp_path, dataset):
    extra = [("not in the truth", np.zeros((2, 2), int), [])]
    perfect = panoptic_quality(
        dataset.json, dataset.pngs, *save_panoptic(tmp_path / "perfect", [*dataset.maps, *extra])
    )
    void = [(image_id, np.zeros_like(ids), []) for image_id, ids, _ in dataset.maps]
    empty = panoptic_quality(dataset.json, dataset.pngs, *save_panoptic(tmp_path / "void", void))
    for suffix in ("", "_th", "_st"):
        assert [perfect[name + suffix] for name in ("PQ", "SQ", "RQ")] == [100, 100, 100]
        assert [empty[name + suffix] for name in ("PQ", "SQ", "RQ")] == [0, 0, 0]


@EITHER_IDS
def test_evaluator_equals_the_command_on_the_files_it_wrote(tmp_path, dataset):
    records = dataset.records(dataset.disturbed)
    options = {"output_dir": tmp_path / "inference", "save_predictions": True}
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata, **options)
    results = metrics_of(evaluator, records[:2], records[2:])
    again = metrics_of(evaluator, records)  # reset, files overwritten
    assert again == pytest.approx(results, nan_ok=True) and 0 < results["PQ"] < 100

    written = tmp_path / "inference/panoptic"
    files = dataset.json, dataset.pngs, written / "predictions.json", written / "predictions"
    from_files = score("panoptic", *flagged(files), "--workers", 2)
    assert from_files == pytest.approx(results, nan_ok=True)
    categories = {info["category_id"] for _, _, infos in dataset.disturbed for info in infos}
    annotations = json.loads((written / "predictions.json").read_text())["annotations"]
    assert {s["category_id"] for a in annotations for s in a["segments_info"]} == categories
    assert [a["image_id"] for a in annotations] == [image_id for image_id, *_ in dataset.maps]
    saved = tmp_path / "inference/submission/panoptic.json", tmp_path / "inference/submission/panoptic"
    assert panoptic_quality(dataset.json, dataset.pngs, *saved) == pytest.approx(results, nan_ok=True)
    assert {path.name for path in saved[1].iterdir()} == {f"{image_id}.png" for image_id, *_ in dataset.maps}


def test_areas_are_those_of_the_json_unless_recounted(tmp_path, dataset):
    """In ADE20K, the area of stuff is that before things were pasted over it, and some stuff is hidden."""
    content = json.loads(dataset.json.read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["area"] *= 1 if segment["category_id"] in (3, 90) else 1.25
        hidden = {"id": 2**24 - 1, "category_id": 200, "area": 9, "iscrowd": 0}
        annotation["segments_info"].append(hidden)
    dataset.json.write_text(json.dumps(content))
    files = dataset.json, dataset.pngs, *save_panoptic(tmp_path / "perfect", dataset.maps)
    stored = panoptic_quality(*files)
    assert [stored[name] for name in ("PQ_th", "SQ_st")] == pytest.approx([100, 80])
    assert 50 < stored["RQ_st"] < 100
    recounted = score("panoptic", *flagged(files), "--recount-areas")
    assert [recounted[name] for name in ("PQ", "SQ", "RQ", "PQ_st")] == [100] * 4

    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata, recount_areas=True)
    assert metrics_of(evaluator, dataset.records(dataset.maps))["PQ"] == 100


def test_evaluator_without_folder_writes_nothing(tmp_path, monkeypatch):
    dataset = SyntheticDataset(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata, save_predictions=True)
    assert metrics_of(evaluator, dataset.records(dataset.maps))["PQ"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_png_names_with_folders_become_distinct_names_in_one_folder(tmp_path):
    ids = np.ones((2, 2), int)
    names = ["a/x.png", "b/x.png", str(tmp_path / "truth/x.png")]
    segments = [{"id": 1, "category_id": 7, "area": 4, "iscrowd": 0}]
    annotations = [
        {"image_id": n, "file_name": name, "segments_info": segments} for n, name in enumerate(names)
    ]
    for name in names:
        save_ids(tmp_path / "truth" / name, ids)
    dataset = SyntheticDataset(tmp_path / "synthetic")
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
    dataset.metadata.panoptic_json = tmp_path / "truth.json"
    dataset.metadata.panoptic_root = tmp_path / "truth"
    dataset.maps = [(n, ids, segments) for n in range(3)]
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata, output_dir=tmp_path / "out")
    assert metrics_of(evaluator, dataset.records(dataset.maps))["PQ"] == 100
    assert len(list((tmp_path / "out/panoptic/predictions").iterdir())) == 3


def test_each_image_must_be_predicted_once(tmp_path, dataset):
    records, evaluator = dataset.records(dataset.maps), COCOPanopticEvaluator(metadata=dataset.metadata)
    with pytest.raises(ValueError, match=r"truth\.json: 1 images have no prediction, among them 11"):
        metrics_of(evaluator, records[:2])
    with pytest.raises(ValueError, match="an image was predicted more than once"):
        metrics_of(evaluator, [*records, records[0]])
    with pytest.raises(ValueError, match=r"truth\.json: no annotation has image_id 99"):
        metrics_of(evaluator, [{**records[0], "image_id": 99}])


def test_missing_metadata_and_classes_are_errors(tmp_path, dataset):
    dataset.metadata.thing_dataset_id_to_contiguous_id = {3: 0}
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata)
    with pytest.raises(ValueError, match="predicted class 1, which is not in the dataset's thing_"):
        metrics_of(evaluator, dataset.records(dataset.maps))
    del dataset.metadata.panoptic_root
    with pytest.raises(ValueError, match="metadata of 'synthetic': 'panoptic_root' is missing"):
        COCOPanopticEvaluator(metadata=dataset.metadata)


def test_command_reports_bad_input_in_one_line(tmp_path, dataset):
    pred_json, pred_dir = save_panoptic(tmp_path / "pred", dataset.disturbed)
    good = dict(zip(FLAGS, (dataset.json, dataset.pngs, pred_json, pred_dir), strict=True))
    (tmp_path / "broken.json").write_text('{"annotations": [')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "few.json").write_text('{"annotations": []}')
    (tmp_path / "null.json").write_text('{"annotations": null, "categories": []}')
    for argument, value, message in [
        ("--gt-json", tmp_path / "absent.json", "absent.json: no such file"),
        ("--pred-json", tmp_path / "broken.json", "broken.json: not a readable JSON file"),
        ("--pred-json", tmp_path / "list.json", "list.json: holds a list at the top, expected a dict"),
        ("--pred-json", tmp_path / "few.json", "few.json: 3 images have no prediction"),
        ("--gt-json", pred_json, "pred.json: no key 'categories'"),
        ("--gt-json", tmp_path / "null.json", "null.json: 'annotations' is None, expected a list"),
        ("--pred-json", tmp_path / "null.json", "null.json: 'annotations' is None, expected a list"),
        ("--pred-dir", tmp_path / "absent", "5.png: no such file"),
    ]:
        assert message in score_error("panoptic", *chain(*{**good, argument: value}.items()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": None}, r"image 2: segment \d+ has no 'area'; PQ needs it, unless TEST.RECOUNT_AREAS True"),
        ({"area": 0}, r"image 2: segment \d+ has the 'area' 0 though it has pixels"),
        ({"area": "4"}, r"image 2: segment \d+: 'area' is '4', expected a number of pixels"),
        ({"area": -1}, "'area' is -1, expected a number of pixels"),
        ({"id": 0}, "image 2: segment 0: 'id' is 0, expected a whole number in"),
        ({"id": 1.5}, r"'id' is 1\.5, expected a whole number"),
        ({"id": "1"}, "'id' is '1', expected a whole number"),
        ({"id": True}, "'id' is True, expected a whole number"),
        ({"category_id": 77}, r"segment \d+: category_id 77 is not among the categories"),
        ({"iscrowd": "0"}, r"segment \d+: 'iscrowd' is '0', expected 0 or 1"),
    ],
)
def test_broken_segments_are_errors_before_the_model_runs(dataset, change, message):
    edit_truth(dataset, lambda rows: rows[0].update(change))
    with pytest.raises(ValueError, match=message):
        COCOPanopticEvaluator(metadata=dataset.metadata)


def test_missing_keys_and_repeated_ids_are_errors_before_the_model_runs(dataset):
    edit_truth(dataset, lambda rows: rows.append(rows[0]))
    with pytest.raises(ValueError, match=r"image 2: segments_info lists the id \d+ twice"):
        COCOPanopticEvaluator(metadata=dataset.metadata)
    edit_truth(dataset, lambda rows: rows[-1].pop("category_id"))
    with pytest.raises(ValueError, match=r"image 2: no 'category_id' in the segment \{'id': "):
        COCOPanopticEvaluator(metadata=dataset.metadata)


def edit_truth(dataset, edit):
    """Change the segments of the second image in the ground truth."""
    file = Path(dataset.metadata.panoptic_json)
    truth = json.loads(file.read_text())
    edit(truth["annotations"][1]["segments_info"])
    file.write_text(json.dumps(truth))


def test_keys_that_the_metric_does_not_need_may_hold_anything(dataset):
    edit_truth(dataset, lambda rows: rows[0].update(note=json.loads("[" * 900 + "]" * 900)))
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata)
    assert metrics_of(evaluator, dataset.records(dataset.maps))["PQ"] == 100


def test_recounted_areas_need_none_in_the_file(dataset):
    edit_truth(dataset, lambda rows: [row.pop("area") for row in rows])
    evaluator = COCOPanopticEvaluator(metadata=dataset.metadata, recount_areas=True)
    assert metrics_of(evaluator, dataset.records(dataset.maps))["PQ"] == 100


def test_whole_floats_are_read_as_integers(dataset):
    edit_truth(
        dataset,
        lambda rows: [row.update({key: float(row[key]) for key in ("id", "category_id")}) for row in rows],
    )
    assert (
        metrics_of(COCOPanopticEvaluator(metadata=dataset.metadata), dataset.records(dataset.maps))["PQ"]
        == 100
    )


def test_a_hidden_segment_may_have_the_area_0_and_counts_as_missed(dataset):
    edit_truth(dataset, lambda rows: rows.append({"id": 77, "category_id": 200, "area": 0}))
    metrics = metrics_of(COCOPanopticEvaluator(metadata=dataset.metadata), dataset.records(dataset.maps))
    assert metrics["PQ_th"] == 100 and metrics["RQ_st"] < 100
