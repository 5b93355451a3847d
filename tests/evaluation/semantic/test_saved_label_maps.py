"""Label maps in the datasets' own labels: written by the evaluation, and scored from files."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from score_command import score, score_error
from synthetic_evaluation import Replay, metrics_of

from mask2former.evaluation.evaluator import inference_on_dataset
from mask2former.evaluation.semantic.miou import SemSegEvaluator

ADE20K = ("--label-ids", "1-150", "--ignore-label", "0")
MAPILLARY = ("--num-classes", "65", "--ignore-label", "65")
FULL = ("--num-classes", "847", "--ignore-label", "65535")
GAPS = ("--label-ids", "1-3,7,400", "--ignore-label", "0")
KINDS = {  # official ids, ignored label of the metadata, of the official files, and flags
    "ade20k": ([*range(1, 151)], 255, 0, ADE20K),
    "mapillary": ([*range(65)], 65, 65, MAPILLARY),
    "ade20k_full": ([*range(847)], 65535, 65535, FULL),  # not in its metadata, as they are contiguous
    "with gaps": ([1, 2, 3, 7, 400], 255, 0, GAPS),
}


def draw(kind: str, folder: Path) -> tuple[SimpleNamespace, list[dict[str, Any]]]:
    """Return metadata and records; write the ground truth as published, and with contiguous labels."""
    official, ignore, official_ignore, _ = KINDS[kind]
    rng, count = np.random.default_rng(0), len(official)
    names = [f"class {c}" for c in range(count)]
    metadata = SimpleNamespace(name=kind, stuff_classes=names, ignore_label=ignore)
    if kind != "ade20k_full":
        metadata.official_label_ids, metadata.official_ignore_label = official, official_ignore
    values = np.array([*official, official_ignore])
    suffix = "tif" if kind == "ade20k_full" else "png"
    records = []
    for name in ("a", "b.c"):
        places = rng.integers(0, count + 1, (6, 8))
        pred = np.where(rng.random(places.shape) < 0.7, places, 0) % count
        labels = np.where(places == count, ignore, places)
        for where, image in (("official", values[places]), ("prepared", labels)):
            file = folder / where / f"{name}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8 if image.max() < 256 else np.uint16)).save(file)
        output = {"label_map": torch.from_numpy(pred).int()}
        truth = str(folder / f"prepared/{name}.{suffix}")
        records.append({"file_name": f"x/{name}.jpg", "sem_seg_file_name": truth, "output": output})
    return metadata, records


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_files_equal_those_of_the_evaluator(tmp_path, kind):
    metadata, records = draw(kind, tmp_path)
    pred = records[0]["output"]["label_map"]
    pred[0, :2] = metadata.ignore_label  # a model may predict the ignored label
    evaluator = SemSegEvaluator(metadata=metadata, output_dir=tmp_path / "out", save_predictions=True)
    results = metrics_of(evaluator, records)
    assert 5 < results["mIoU"] < 95
    saved = tmp_path / "out/submission/semantic"
    assert {path.name for path in saved.iterdir()} == {"a.png", "b.c.png"}
    official, _, official_ignore, flags = KINDS[kind]
    expected = np.array(official)[pred % len(official)]
    expected[0, :2] = official_ignore
    image = Image.open(saved / "a.png")
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert image.mode == ("L" if kind in ("ade20k", "mapillary") else "I;16")

    from_files = score("semantic", "--gt-dir", tmp_path / "official", "--pred-dir", saved, *flags)
    for metric in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert from_files[metric] == pytest.approx(results[metric])
    values = [from_files[f"IoU-{id}"] for id in official]
    assert values == pytest.approx([results[f"IoU-{name}"] for name in metadata.stuff_classes], nan_ok=True)


def test_predictions_can_have_other_labels_than_the_ground_truth(tmp_path):
    metadata, records = draw("with gaps", tmp_path)
    evaluator = SemSegEvaluator(metadata=metadata, output_dir=tmp_path, save_predictions=True)
    results = metrics_of(evaluator, records)
    folders = ["--gt-dir", tmp_path / "prepared", "--pred-dir", tmp_path / "submission/semantic"]
    arguments = ["semantic", *folders, "--num-classes", 5, "--pred-label-ids"]
    assert score(*arguments, "1-3,7,400")["mIoU"] == pytest.approx(results["mIoU"])
    assert "the predictions have 3 classes, the ground truth 5" in score_error(*arguments, "1-3")


def test_images_without_ground_truth_are_saved_not_scored(tmp_path):
    metadata, records = draw("ade20k", tmp_path)
    bare = [{key: record[key] for key in ("file_name", "output")} for record in records]
    evaluator = SemSegEvaluator(metadata=metadata, output_dir=tmp_path, save_predictions=True)
    assert not inference_on_dataset(Replay(), [bare], evaluator)
    assert len(list((tmp_path / "submission/semantic").iterdir())) == 2
    with pytest.raises(ValueError, match="no key 'sem_seg_file_name'"):
        inference_on_dataset(Replay(), [bare], SemSegEvaluator(metadata=metadata))


def test_images_of_the_same_name_are_reported(tmp_path, caplog):
    metadata, records = draw("ade20k", tmp_path)
    records[1]["file_name"] = "y/a.jpg"
    evaluator = SemSegEvaluator(metadata=metadata, output_dir=tmp_path, save_predictions=True)
    with caplog.at_level(logging.ERROR):
        assert metrics_of(evaluator, records)["mIoU"]
    assert "submission/semantic: images of different folders have the same name" in caplog.text
    assert caplog.messages[-1].endswith(": a.png")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("1-2,2", "the classes are the labels [1, 2, 2]: expected 1 or more, and none twice"),
        ("1-3", "a.png: label 4 is not among the known labels [0, 1, 2, 3]"),
    ],
)
def test_unknown_and_repeated_labels_are_errors(tmp_path, ids, message):
    Image.fromarray(np.array([[0, 4]], np.uint8)).save(tmp_path / "a.png")
    folders = ["--gt-dir", tmp_path, "--pred-dir", tmp_path]
    assert message in score_error("semantic", *folders, "--label-ids", ids, "--ignore-label", 0)


@pytest.mark.parametrize("ids", ["1-", "x", "1;2", ""])
def test_a_malformed_list_of_labels_is_refused(ids, capsys):
    with pytest.raises(SystemExit):
        score("semantic", *["--gt-dir", "x", "--pred-dir", "y", "--label-ids", ids])
    assert "is not like 1-150 or 7,8,11-13" in capsys.readouterr().err


@pytest.mark.parametrize("ignored", [-1, 9, 10**12])
def test_any_number_may_be_ignored(tmp_path, ignored):
    Image.fromarray(np.array([[1, 4]], np.uint8)).save(tmp_path / "a.png")
    folders = ["--gt-dir", tmp_path, "--pred-dir", tmp_path]
    assert score("semantic", *folders, "--label-ids", "1,4", "--ignore-label", ignored)["mIoU"] == 100
