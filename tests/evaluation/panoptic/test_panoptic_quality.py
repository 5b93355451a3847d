"""Panoptic quality of files and of evaluators, against official answers and Cityscapes' implementation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_drawings import CATEGORIES, DrawnSet, Replay, save_ids, save_panoptic

from mask2former.evaluation.evaluator import inference_on_dataset
from mask2former.evaluation.panoptic.quality import COCOPanopticEvaluator, main, panoptic_quality

FLAGS = ("--gt-json", "--gt-dir", "--pred-json", "--pred-dir")
GROUPS = {"": "All", "_th": "Things", "_st": "Stuff"}


@pytest.mark.parametrize("workers", [1, 3])
def test_official_answer_on_real_images(shared: Path, workers: int) -> None:
    sample = shared / "data/samples/panopticapi_sample"
    golden = sample / "golden_pq"
    results = panoptic_quality(
        sample / "panoptic_examples.json",
        sample / "panoptic_examples",
        golden / "pred.json",
        golden / "pred",
        workers=workers,
    )
    expected = json.loads((golden / "expected.json").read_text())["All"]
    assert results["n"] == expected["n"]
    for name in ("PQ", "SQ", "RQ"):
        assert results[name] == pytest.approx(100 * expected[name.lower()], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_equals_cityscapesscripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    oracle = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    monkeypatch.setattr(
        oracle, "pq_compute_multi_core", lambda *args: oracle.pq_compute_single_core(0, *args)
    )
    drawn = DrawnSet(tmp_path, image_ids=range(12), seed=seed)
    content = json.loads(drawn.json.read_text())
    for annotation in content["annotations"]:  # stale areas, as ADE20K has them
        for segment in annotation["segments_info"][::3]:
            segment["area"] += 5
    drawn.json.write_text(json.dumps(content))
    pred_json, pred_dir = save_panoptic(tmp_path / "pred", drawn.disturbed)

    expected = oracle.evaluatePanoptic(drawn.json, drawn.pngs, pred_json, pred_dir, tmp_path / "results.json")
    results = panoptic_quality(drawn.json, drawn.pngs, pred_json, pred_dir)
    assert 5 < results["PQ_th"] < 95
    for suffix, group in GROUPS.items():
        for name in ("PQ", "SQ", "RQ"):
            assert results[name + suffix] == pytest.approx(100 * expected[group][name.lower()], abs=1e-9)
        assert results["n" + suffix] == expected[group]["n"]


@pytest.mark.parametrize("image_ids", [(5, 2, 11), ("ADE_val_1", "ADE_val_10", "b")])
def test_perfect_and_empty_predictions_through_files(tmp_path: Path, image_ids: tuple[Any, ...]) -> None:
    drawn = DrawnSet(tmp_path, image_ids)
    extra = [("not in the truth", np.zeros((2, 2), int), [])]
    perfect = panoptic_quality(
        drawn.json, drawn.pngs, *save_panoptic(tmp_path / "perfect", [*drawn.maps, *extra])
    )
    void = [(image_id, np.zeros_like(ids), []) for image_id, ids, _ in drawn.maps]
    empty = panoptic_quality(drawn.json, drawn.pngs, *save_panoptic(tmp_path / "void", void))
    for suffix in GROUPS:
        assert [perfect[name + suffix] for name in ("PQ", "SQ", "RQ")] == [100, 100, 100]
        assert [empty[name + suffix] for name in ("PQ", "SQ", "RQ")] == [0, 0, 0]


@pytest.mark.parametrize("image_ids", [(5, 2, 11), ("ADE_val_1", "ADE_val_10", "b")])
def test_evaluator_equals_the_command_on_the_files_it_wrote(
    tmp_path: Path, image_ids: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = DrawnSet(tmp_path, image_ids)
    records = drawn.records(drawn.disturbed)
    evaluator = COCOPanopticEvaluator(metadata=drawn.metadata, output_dir=tmp_path / "inference")
    results = inference_on_dataset(Replay(), [records[:2], records[2:]], evaluator)["panoptic_seg"]
    again = inference_on_dataset(Replay(), [records], evaluator)["panoptic_seg"]  # reset, files written over
    assert again == pytest.approx(results, nan_ok=True) and 0 < results["PQ"] < 100

    written = tmp_path / "inference/panoptic"
    truth = ["--gt-json", str(drawn.json), "--gt-dir", str(drawn.pngs)]
    pred = ["--pred-json", str(written / "predictions.json"), "--pred-dir", str(written / "predictions")]
    assert main([*truth, *pred, "--workers", "2", "--json"]) == 0
    from_files = json.loads(capsys.readouterr().out)
    assert {k: np.nan if v is None else v for k, v in from_files.items()} == pytest.approx(
        results, nan_ok=True
    )
    categories = {info["category_id"] for _, _, infos in drawn.disturbed for info in infos}
    annotations = json.loads((written / "predictions.json").read_text())["annotations"]
    assert {s["category_id"] for a in annotations for s in a["segments_info"]} == categories
    assert [a["image_id"] for a in annotations] == list(image_ids)


def test_stored_areas_count_unless_they_are_counted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in ADE20K: the area of stuff is that before things were pasted over it, and some is hidden whole."""
    drawn = DrawnSet(tmp_path)
    content = json.loads(drawn.json.read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["area"] *= 1 if segment["category_id"] in (3, 90) else 1.25
        hidden = {"id": 2**24 - 1, "category_id": 200, "area": 9, "iscrowd": 0}
        annotation["segments_info"].append(hidden)
    drawn.json.write_text(json.dumps(content))
    files = drawn.json, drawn.pngs, *save_panoptic(tmp_path / "perfect", drawn.maps)
    stored = panoptic_quality(*files)
    assert [stored[name] for name in ("PQ_th", "SQ_st")] == pytest.approx([100, 80])
    assert 50 < stored["RQ_st"] < 100
    arguments = [str(word) for pair in zip(FLAGS, files, strict=True) for word in pair]
    assert main([*arguments, "--recount-areas", "--json"]) == 0
    recounted = json.loads(capsys.readouterr().out)
    assert [recounted[name] for name in ("PQ", "SQ", "RQ", "PQ_st")] == [100] * 4

    evaluator = COCOPanopticEvaluator(metadata=drawn.metadata, recount_areas=True)
    results = inference_on_dataset(Replay(), [drawn.records(drawn.maps)], evaluator)["panoptic_seg"]
    assert results["PQ"] == 100


def test_the_submission_is_scored_alike(tmp_path: Path) -> None:
    drawn, out = DrawnSet(tmp_path), tmp_path / "out"
    evaluator = COCOPanopticEvaluator(metadata=drawn.metadata, output_dir=out, save_predictions=True)
    results = inference_on_dataset(Replay(), [drawn.records(drawn.disturbed)], evaluator)["panoptic_seg"]
    saved = out / "submission/panoptic.json", out / "submission/panoptic"
    assert panoptic_quality(drawn.json, drawn.pngs, *saved) == pytest.approx(results, nan_ok=True)
    assert {path.name for path in saved[1].iterdir()} == {"5.png", "2.png", "11.png"}


def test_evaluator_without_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = DrawnSet(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    results = inference_on_dataset(
        Replay(),
        [drawn.records(drawn.maps)],
        COCOPanopticEvaluator(metadata=drawn.metadata, save_predictions=True),
    )
    assert results["panoptic_seg"]["PQ"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_names_of_files_in_folders_stay_apart_and_inside(tmp_path: Path) -> None:
    ids = np.ones((2, 2), int)
    names = ["a/x.png", "b/x.png", str(tmp_path / "truth/x.png")]
    segments = [{"id": 1, "category_id": 7, "area": 4, "iscrowd": 0}]
    annotations = [
        {"image_id": n, "file_name": name, "segments_info": segments} for n, name in enumerate(names)
    ]
    for name in names:
        save_ids(tmp_path / "truth" / name, ids)
    drawn = DrawnSet(tmp_path / "drawn")
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
    drawn.metadata.panoptic_json, drawn.metadata.panoptic_root = tmp_path / "truth.json", tmp_path / "truth"
    drawn.maps = [(n, ids, segments) for n in range(3)]
    evaluator = COCOPanopticEvaluator(metadata=drawn.metadata, output_dir=tmp_path / "out")
    assert inference_on_dataset(Replay(), [drawn.records(drawn.maps)], evaluator)["panoptic_seg"]["PQ"] == 100
    assert len(list((tmp_path / "out/panoptic/predictions").iterdir())) == 3


def test_every_image_is_needed_once(tmp_path: Path) -> None:
    drawn = DrawnSet(tmp_path)
    records, evaluator = drawn.records(drawn.maps), COCOPanopticEvaluator(metadata=drawn.metadata)
    with pytest.raises(ValueError, match=r"truth\.json: 1 images have no prediction, among them 11"):
        inference_on_dataset(Replay(), [records[:2]], evaluator)
    with pytest.raises(ValueError, match="an image was predicted more than once"):
        inference_on_dataset(Replay(), [[*records, records[0]]], evaluator)
    with pytest.raises(ValueError, match=r"truth\.json: no annotation has image_id 99"):
        inference_on_dataset(Replay(), [[{**records[0], "image_id": 99}]], evaluator)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    metadata = DrawnSet(tmp_path).metadata
    del metadata.panoptic_root
    with pytest.raises(ValueError, match="metadata of 'drawn': 'panoptic_root' is missing"):
        COCOPanopticEvaluator(metadata=metadata)


def test_a_class_beyond_the_data_set_is_named(tmp_path: Path) -> None:
    drawn = DrawnSet(tmp_path)
    drawn.metadata.thing_dataset_id_to_contiguous_id = {3: 0}
    evaluator = COCOPanopticEvaluator(metadata=drawn.metadata)
    with pytest.raises(ValueError, match="found class 1, which is not in the data set's thing_dataset_id_to"):
        inference_on_dataset(Replay(), [drawn.records(drawn.maps)], evaluator)


def test_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = DrawnSet(tmp_path)
    folders = ["--gt-dir", str(drawn.pngs), "--pred-dir", str(drawn.pngs)]
    assert main(["--gt-json", str(drawn.json), "--pred-json", str(drawn.json), *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["PQ", "SQ", "RQ", "n"] and lines[2].split()[:3] == ["100.000"] * 3
    assert ["triangle-like", "100.000", "100.000", "100.000"] in [line.split() for line in lines]


def test_command_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = DrawnSet(tmp_path)
    pred_json, pred_dir = save_panoptic(tmp_path / "pred", drawn.disturbed)
    good = {"--gt-json": drawn.json, "--gt-dir": drawn.pngs, "--pred-json": pred_json, "--pred-dir": pred_dir}
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
        arguments = [str(word) for pair in {**good, argument: value}.items() for word in pair]
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1 and not captured.out
