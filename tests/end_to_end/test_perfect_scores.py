"""Perfect answers score 100 (or, as documented, less) and empty ones 0: by the evaluation, by the commands on
the files that it saved, and by Cityscapes' own evaluators.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapes_drawings import Oracle
from dataset_cases import ALL_METRICS, CASES, Case
from oracle_predictions import ADE20K_STUFF, THINGS, TRUTHS, Knowing, ade20k, answer, emptied

from mask2former.config import load_config
from mask2former.engine.evaluate import evaluate
from mask2former.evaluation.cityscapes import ap as cityscapes_ap
from mask2former.evaluation.cityscapes import iou as cityscapes_iou
from mask2former.evaluation.coco import ap as coco_ap
from mask2former.evaluation.panoptic import quality as panoptic_quality
from mask2former.evaluation.semantic import miou as mean_iou

Answers = dict[str, dict[str, Any]]
Results = dict[str, dict[str, float]]
Command = tuple[Callable[[Sequence[str]], int], list[object]]

LABELS: dict[str, tuple[str, str]] = {  # of a tree: the folder of true label maps, and what their values are
    "ade20k": ("ADEChallengeData2016/annotations/validation", "--label-ids 1-150 --ignore-label 0"),
    "ade20k_full": (
        "ADE20K_2021_17_01/annotations_detectron2/validation",
        "--num-classes 847 --ignore-label 65535",
    ),
    "coco": ("coco/panoptic_semseg_val2017", "--num-classes 133"),
    "coco_stuff": ("coco/coco_stuff_10k/annotations_detectron2/test", "--num-classes 171"),
    "mapillary": ("mapillary_vistas/validation/v1.2/labels", "--num-classes 65 --ignore-label 65"),
    "mapillary_flat": ("mapillary_vistas/validation/labels", "--num-classes 65 --ignore-label 65"),
    "mapillary_v2": ("mapillary_vistas/validation/v2.0/labels", "--num-classes 123 --ignore-label 123"),
}
OBJECTS = {  # the true instances
    "ade20k": "ADEChallengeData2016/ade20k_instance_val.json",
    "coco": "coco/annotations/instances_val2017.json",
    "lvis": "lvis/lvis_v1_val.json",
}
SEGMENTS = {  # the true panoptic JSON, and the folder of its PNGs
    "ade20k": ("ADEChallengeData2016/ade20k_panoptic_val.json", "ADEChallengeData2016/ade20k_panoptic_val"),
    "cityscapes": (
        "cityscapes/gtFine/cityscapes_panoptic_val.json",
        "cityscapes/gtFine/cityscapes_panoptic_val",
    ),
    "coco": ("coco/annotations/panoptic_val2017.json", "coco/panoptic_val2017"),
    "mapillary": (
        "mapillary_vistas/validation/v1.2/panoptic/panoptic_2018.json",
        "mapillary_vistas/validation/v1.2/panoptic",
    ),
    "mapillary_flat": (
        "mapillary_vistas/validation/panoptic/panoptic_2018.json",
        "mapillary_vistas/validation/panoptic",
    ),
    "mapillary_v2": (
        "mapillary_vistas/validation/v2.0/panoptic/panoptic_2020.json",
        "mapillary_vistas/validation/v2.0/panoptic",
    ),
}
CITYSCAPES = "cityscapes/gtFine/val"


@pytest.fixture
def answers(case: Case, root: Path) -> Answers:
    """The perfect ones."""
    things, renumbered = THINGS.get(case.tree, ()), case.task == "instance"
    truths = TRUTHS[case.tree](root)
    return {name: answer(truth, things, renumbered=renumbered) for name, truth in truths.items()}


def evaluated(case: Case, answers: Answers, out: Path, **options: object) -> Results:
    switches = {"TEST__SAVE_PREDICTIONS": True, "TEST__BOUNDARY": True, **options}
    return evaluate(load_config(case.config, case.options(**switches)), Knowing(answers), out)


def main_metrics(results: Results) -> dict[str, float]:
    """The main metric of each task, and the same by boundaries."""
    names = [(task, prefix + ALL_METRICS[task]) for task in results for prefix in ("", "boundary_")]
    return {f"{task}/{name}": results[task][name] for task, name in names if name in results[task]}


def saved_scores(case: Case, root: Path, out: Path, tasks: Sequence[str], capsys: Any) -> Results:
    """What the commands find in the files that an evaluation saved."""
    scores: Results = {}
    for task in tasks:
        command, arguments = command_of(case.tree, task, root, out / "submission")
        capsys.readouterr()
        assert command([*map(str, arguments), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        scores[task] = {name: np.nan if value is None else value for name, value in found.items()}
    return scores


def command_of(tree: str, task: str, root: Path, saved: Path) -> Command:
    """As docs/evaluation.md says."""
    if task == "panoptic_seg":
        truth = [root / place for place in SEGMENTS[tree]]
        files = ["--gt-json", truth[0], "--gt-dir", truth[1]]
        files += ["--pred-json", saved / "panoptic.json", "--pred-dir", saved / "panoptic"]
        return panoptic_quality.main, [*files, "--boundary", 0.005 if tree == "cityscapes" else 0.02]
    folder = "instance" if task == "segm" else "semantic"
    if tree == "cityscapes":
        folders = ["--gt-dir", root / CITYSCAPES, "--pred-dir", saved / folder]
        return (
            (cityscapes_ap.main, [*folders, "--boundary"])
            if task == "segm"
            else (cityscapes_iou.main, folders)
        )
    if task == "segm":
        files = ["--gt", root / OBJECTS[tree], "--results", saved / "instance.json", "--boundary"]
        return coco_ap.main, [*files, *(["--lvis"] if tree == "lvis" else [])]
    truth_folder, flags = LABELS[tree]
    return mean_iou.main, ["--gt-dir", root / truth_folder, "--pred-dir", saved / folder, *flags.split()]


def stored_areas_quality(root: Path) -> float:
    """PQ of perfect answers on ADE20K: stuff has the area that it had before objects were pasted over it."""
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
def test_perfect_answers(case: Case, root: Path, answers: Answers, tmp_path: Path, capsys: Any) -> None:
    results = evaluated(case, answers, tmp_path)
    assert set(results) == set(case.tasks)
    scores = main_metrics(results)
    assert main_metrics(saved_scores(case, root, tmp_path, case.tasks, capsys)) == pytest.approx(scores)
    if str(case) == "ade20k-panoptic":
        expected = stored_areas_quality(root)
        assert 50 < expected < 99 and scores.pop("panoptic_seg/PQ") == pytest.approx(expected)
        assert scores.pop("panoptic_seg/boundary_PQ") <= expected + 1e-9
    assert scores == pytest.approx(dict.fromkeys(scores, 100))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_empty_answers(case: Case, root: Path, answers: Answers, tmp_path: Path, capsys: Any) -> None:
    shown = {label for one in answers.values() for label in one["label_map"].unique().tolist()}
    wrong = min({*range(19)} - shown)  # a class that is nowhere in the ground truth
    results = evaluated(case, {name: emptied(one, wrong) for name, one in answers.items()}, tmp_path)
    assert set(results) == set(case.tasks)
    scores = main_metrics(results)
    assert scores == dict.fromkeys(scores, 0)
    assert main_metrics(saved_scores(case, root, tmp_path, case.tasks, capsys)) == scores


@pytest.mark.parametrize("case", [case for case in CASES if str(case) == "ade20k-panoptic"], ids=str)
def test_recounted_areas_make_perfect_answers_perfect(
    case: Case, root: Path, answers: Answers, tmp_path: Path, capsys: Any
) -> None:
    scores = main_metrics(evaluated(case, answers, tmp_path, TEST__RECOUNT_AREAS=True))
    assert scores == pytest.approx(dict.fromkeys(scores, 100))
    command, arguments = command_of(case.tree, "panoptic_seg", root, tmp_path / "submission")
    assert command([*map(str, arguments), "--recount-areas", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found["PQ"], found["boundary_PQ"]] == pytest.approx([100, 100])


@pytest.mark.parametrize("case", [case for case in CASES if str(case) == "cityscapes-panoptic"], ids=str)
def test_cityscapes_own_evaluators_find_the_submission_perfect(
    case: Case, root: Path, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(case, answers, tmp_path)
    saved, oracle = tmp_path / "submission", Oracle(tmp_path / "oracle", monkeypatch)
    objects = oracle.instances(root / CITYSCAPES, saved / "instance")["averages"]
    assert [objects["allAp"], objects["allAp50%"]] == pytest.approx([1, 1])
    pixels = oracle.pixels(root / CITYSCAPES, saved / "semantic")
    assert [pixels["averageScoreClasses"], pixels["averageScoreCategories"]] == pytest.approx([1, 1])
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    monkeypatch.setattr(
        script, "pq_compute_multi_core", lambda *args: script.pq_compute_single_core(0, *args)
    )
    truth = [str(root / place) for place in SEGMENTS["cityscapes"]]
    files = [str(saved / "panoptic.json"), str(saved / "panoptic"), str(tmp_path / "results.json")]
    assert script.evaluatePanoptic(*truth, *files)["All"]["pq"] == pytest.approx(1)
