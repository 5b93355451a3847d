"""Oracle predictions score 100 (or, as documented, less), empty predictions 0, and shifted ones between.

This holds for the evaluation, for `mask2former score` on the saved files, and for Cityscapes' evaluators.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import ALL_METRICS, BY_NAME, CASES, Case
from oracle_predictions import (
    ADE20K_STUFF,
    GROUND_TRUTHS,
    THINGS,
    OracleModel,
    ade20k,
    empty_prediction,
    oracle_prediction,
)
from score_command import score
from synthetic_cityscapes import CityscapesScripts

from mask2former.config import load_config
from mask2former.engine.evaluate import evaluate
from mask2former.structures import Instances

Predictions = dict[str, dict[str, Any]]
Results = dict[str, dict[str, float]]

ADE20K, ADE20K_FULL, MAPILLARY = "ADEChallengeData2016", "ADE20K_2021_17_01", "mapillary_vistas/validation"
CITYSCAPES = "cityscapes/gtFine/val"
CITYSCAPES_PANOPTIC = "cityscapes/gtFine/cityscapes_panoptic_val"
LABELS: dict[str, tuple[str, str]] = {  # of a tree: the folder of true label maps, and what their values are
    "ade20k": (f"{ADE20K}/annotations/validation", "--label-ids 1-150 --ignore-label 0"),
    "ade20k_full": (
        f"{ADE20K_FULL}/annotations_detectron2/validation",
        "--num-classes 847 --ignore-label 65535",
    ),
    "coco": ("coco/panoptic_semseg_val2017", "--num-classes 133"),
    "coco_stuff": ("coco/coco_stuff_10k/annotations_detectron2/test", "--num-classes 171"),
    "mapillary": (f"{MAPILLARY}/v1.2/labels", "--num-classes 65 --ignore-label 65"),
    "mapillary_flat": (f"{MAPILLARY}/labels", "--num-classes 65 --ignore-label 65"),
    "mapillary_v2": (f"{MAPILLARY}/v2.0/labels", "--num-classes 123 --ignore-label 123"),
}
OBJECTS = {  # the true instances
    "ade20k": f"{ADE20K}/ade20k_instance_val.json",
    "coco": "coco/annotations/instances_val2017.json",
    "lvis": "lvis/lvis_v1_val.json",
}
SEGMENTS = {  # the true panoptic JSON, and the folder of its PNGs
    "ade20k": (f"{ADE20K}/ade20k_panoptic_val.json", f"{ADE20K}/ade20k_panoptic_val"),
    "cityscapes": (f"{CITYSCAPES_PANOPTIC}.json", CITYSCAPES_PANOPTIC),
    "coco": ("coco/annotations/panoptic_val2017.json", "coco/panoptic_val2017"),
    "mapillary": (f"{MAPILLARY}/v1.2/panoptic/panoptic_2018.json", f"{MAPILLARY}/v1.2/panoptic"),
    "mapillary_flat": (f"{MAPILLARY}/panoptic/panoptic_2018.json", f"{MAPILLARY}/panoptic"),
    "mapillary_v2": (f"{MAPILLARY}/v2.0/panoptic/panoptic_2020.json", f"{MAPILLARY}/v2.0/panoptic"),
}


@pytest.fixture
def predictions(case: Case, root: Path) -> Predictions:
    """Oracle predictions by image name."""
    things, renumbered = THINGS.get(case.tree, ()), case.task == "instance"
    truths = GROUND_TRUTHS[case.tree](root)
    return {name: oracle_prediction(truth, things, renumbered=renumbered) for name, truth in truths.items()}


def evaluated(case: Case, predictions: Predictions, out: Path, **options: object) -> Results:
    switches = {"TEST__SAVE_PREDICTIONS": True, "TEST__BOUNDARY": True, **options}
    return evaluate(load_config(case.config, case.options(**switches)), OracleModel(predictions), out)


def main_metrics(results: Results) -> dict[str, float]:
    """Return the main metric of each task, by regions and by boundaries."""
    names = [(task, prefix + ALL_METRICS[task]) for task in results for prefix in ("", "boundary_")]
    return {f"{task}/{name}": results[task][name] for task, name in names if name in results[task]}


def saved_scores(case: Case, root: Path, out: Path) -> Results:
    """Return what `mask2former score` finds for the files that an evaluation saved."""
    return {task: score(*command_of(case.tree, task, root, out / "submission")) for task in case.tasks}


def command_of(tree: str, task: str, root: Path, saved: Path) -> list[object]:
    """Return the arguments of `mask2former score`, as in docs/evaluation.md."""
    if task == "panoptic_seg":
        truth = [root / place for place in SEGMENTS[tree]]
        files = ["--gt-json", truth[0], "--gt-dir", truth[1]]
        files += ["--pred-json", saved / "panoptic.json", "--pred-dir", saved / "panoptic"]
        return ["panoptic", *files, "--boundary", 0.005 if tree == "cityscapes" else 0.02]
    if tree == "cityscapes":
        words, folder = ("instances --boundary", "instance") if task == "segm" else ("semantic", "semantic")
        return [*f"cityscapes-{words}".split(), "--gt-dir", root / CITYSCAPES, "--pred-dir", saved / folder]
    if task == "segm":
        files = ["--gt", root / OBJECTS[tree], "--results", saved / "instance.json", "--boundary"]
        return ["instances", *files, *(["--lvis"] if tree == "lvis" else [])]
    truth_folder, labels = LABELS[tree]
    folders = ["--gt-dir", root / truth_folder, "--pred-dir", saved / "semantic"]
    return ["semantic", *folders, *labels.split()]


def stored_areas_quality(root: Path) -> float:
    """Return the PQ of oracle predictions on ADE20K, where the area of stuff ignores objects on top of it."""
    counts = np.zeros((150, 2))  # of each class: the sum of IoUs of matches, and TP + FP / 2 + FN / 2
    for truth in ade20k(root).values():
        covered = np.any([region.mask for region in truth.objects], axis=0) if truth.objects else False
        for category in ADE20K_STUFF:
            stored = (truth.labels == category).sum()
            seen = ((truth.labels == category) & ~np.asarray(covered)).sum()
            if seen > 0.5 * stored:
                counts[category] += seen / stored, 1
            else:
                counts[category, 1] += (stored > 0) / 2 + (seen > 0) / 2
        for region in truth.objects:
            counts[region.category] += 1
    counted = counts[counts[:, 1] > 0]
    return float(100 * (counted[:, 0] / counted[:, 1]).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle_predictions_score_100(case, root, predictions, tmp_path):
    results = evaluated(case, predictions, tmp_path)
    assert set(results) == set(case.tasks)
    scores = main_metrics(results)
    assert main_metrics(saved_scores(case, root, tmp_path)) == pytest.approx(scores)
    if str(case) == "ade20k-panoptic":
        expected = stored_areas_quality(root)
        assert 50 < expected < 99 and scores.pop("panoptic_seg/PQ") == pytest.approx(expected)
        assert scores.pop("panoptic_seg/boundary_PQ") <= expected + 1e-9
    assert scores == pytest.approx(dict.fromkeys(scores, 100))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_empty_predictions_score_0(case, root, predictions, tmp_path):
    shown = {label for one in predictions.values() for label in one["label_map"].unique().tolist()}
    wrong = min({*range(19)} - shown)  # a class that the ground truth lacks
    empty = {name: empty_prediction(one, wrong) for name, one in predictions.items()}
    results = evaluated(case, empty, tmp_path)
    assert set(results) == set(case.tasks)
    scores = main_metrics(results)
    assert scores == dict.fromkeys(scores, 0)
    assert main_metrics(saved_scores(case, root, tmp_path)) == scores


def shifted(prediction):
    """Return the prediction moved one pixel to the right."""
    ids, segments = prediction["panoptic_seg"]
    fields = prediction["instances"].get_fields()
    moved = {**fields, "pred_masks": fields["pred_masks"].roll(1, 2)}
    return {
        "label_map": prediction["label_map"].roll(1, 1),
        "panoptic_seg": (ids.roll(1, 1), segments),
        "instances": Instances(prediction["instances"].image_size, **moved),
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_predictions_get_all_scores_of_the_evaluation(case, root, predictions, tmp_path):
    results = evaluated(case, {name: shifted(one) for name, one in predictions.items()}, tmp_path)
    assert all(0 < value < 100 for value in main_metrics(results).values())
    for task, found in saved_scores(case, root, tmp_path).items():
        for metric, value in results[task].items():
            if task != "sem_seg" or case.tree == "cityscapes" or "-" not in metric:  # else named by numbers
                assert found[metric] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("case", [BY_NAME["ade20k-panoptic"]], ids=str)
def test_oracle_predictions_score_100_with_recounted_areas(case, root, predictions, tmp_path):
    scores = main_metrics(evaluated(case, predictions, tmp_path, TEST__RECOUNT_AREAS=True))
    assert scores == pytest.approx(dict.fromkeys(scores, 100))
    found = score(*command_of(case.tree, "panoptic_seg", root, tmp_path / "submission"), "--recount-areas")
    assert [found["PQ"], found["boundary_PQ"]] == pytest.approx([100, 100])


@pytest.mark.parametrize("case", [BY_NAME["cityscapes-panoptic"]], ids=str)
def test_the_evaluators_of_cityscapes_score_the_submission_100(
    case, root, predictions, tmp_path, monkeypatch
):
    evaluated(case, predictions, tmp_path)
    saved, official = tmp_path / "submission", CityscapesScripts(tmp_path / "official", monkeypatch)
    objects = official.instances(root / CITYSCAPES, saved / "instance")["averages"]
    assert [objects["allAp"], objects["allAp50%"]] == pytest.approx([1, 1])
    pixels = official.pixels(root / CITYSCAPES, saved / "semantic")
    assert [pixels["averageScoreClasses"], pixels["averageScoreCategories"]] == pytest.approx([1, 1])
    files = [*(root / place for place in SEGMENTS["cityscapes"]), saved / "panoptic.json", saved / "panoptic"]
    assert official.panoptic(*files)["PQ"] == pytest.approx(100)
