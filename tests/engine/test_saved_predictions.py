"""Saved predictions are scored by `mask2former score` as the evaluation scored them, for each dataset."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from score_command import score
from synthetic_datasets import ade20k, ade20k_full, cityscapes, coco, coco_stuff, lvis, mapillary
from tiny_runs import tiny_config

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.engine.evaluate import build_evaluator
from mask2former.evaluation.semantic.miou import true_labels
from mask2former.structures import Instances
from mask2former.utils.label_maps import read_segment_ids

SCRIPTS = Path(__file__).parents[2] / "datasets"
ADE20K = "ADEChallengeData2016"
Output = dict[str, Any]


class Case(NamedTuple):
    """A dataset, the module that draws its files, and its label maps: folder and flags for the command."""

    name: str
    tree: ModuleType
    layout: str = ""
    labels: str = ""
    flags: Sequence[str] = ()


ADE20K_LABELS = f"{ADE20K}/annotations/validation", ("--label-ids", "1-150", "--ignore-label", "0")
FULL = "ADE20K_2021_17_01/annotations_detectron2/validation"
FULL_LABELS = FULL, ("--num-classes", "847", "--ignore-label", "65535")
STUFF = "coco/coco_stuff_10k/annotations_detectron2/test"
STUFF_LABELS = STUFF, ("--num-classes", "171")
MAPILLARY = "--num-classes", "65", "--ignore-label", "65"
NESTED, FLAT = (f"mapillary_vistas/validation/{folder}labels" for folder in ("v1.2/", ""))
CITYSCAPES = "cityscapes/gtFine/val"
CASES = [
    Case("coco_2017_val", coco),
    Case("coco_2017_val_panoptic_with_sem_seg", coco),
    Case("ade20k_sem_seg_val", ade20k, "", *ADE20K_LABELS),
    Case("ade20k_instance_val", ade20k),
    Case("ade20k_panoptic_val", ade20k, "", *ADE20K_LABELS),
    Case("ade20k_full_sem_seg_val", ade20k_full, "", *FULL_LABELS),
    Case("coco_2017_test_stuff_10k_sem_seg", coco_stuff, "", *STUFF_LABELS),
    Case("mapillary_vistas_sem_seg_val", mapillary, "v1.2", NESTED, MAPILLARY),
    Case("mapillary_vistas_panoptic_val", mapillary, "flat", FLAT, MAPILLARY),
    Case("cityscapes_fine_sem_seg_val", cityscapes, "", CITYSCAPES),
    Case("cityscapes_fine_instance_seg_val", cityscapes),
    Case("cityscapes_fine_panoptic_val", cityscapes, "", CITYSCAPES),
    Case("lvis_v1_val", lvis),
]


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """Return the folder of a case's dataset, drawn and prepared once."""
    made: dict[tuple[str, str], Path] = {}

    def root(case: Case) -> Path:
        key = case.tree.__name__, case.layout
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(key))
            case.tree.draw(made[key], **({"layout": case.layout} if case.layout else {}))
            if (script := SCRIPTS / f"prepare_{case.tree.__name__.split('.')[1]}.py").is_file():
                run(script, made[key])
        return made[key]

    return root


def run(script: Path, root: Path) -> None:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--root", str(root), "--workers", "1"])


def perfect(record: dict[str, Any], metadata: Any) -> Output:
    """Return the ground truth as a model's output, without crowd regions."""
    output: Output = {}
    if "sem_seg_file_name" in record or "pan_seg_file_name" in record:
        labels = true_labels(record, metadata.ignore_label)[1].astype(np.int32)
        output["label_map"] = torch.from_numpy(np.where(labels == metadata.ignore_label, 0, labels))
    masks, classes = [], []
    if "pan_seg_file_name" in record:
        ids = read_segment_ids(record["pan_seg_file_name"]).astype(np.int32)
        found = [s for s in record["segments_info"] if not s.get("iscrowd") and (ids == s["id"]).any()]
        kept = np.where(np.isin(ids, [s["id"] for s in found]), ids, 0)
        output["panoptic_seg"] = torch.from_numpy(kept), found
        things = [s for s in found if s["isthing"]]
        masks, classes = [ids == s["id"] for s in things], [s["category_id"] for s in things]
    for annotation in record.get("annotations", []):
        if not annotation["iscrowd"]:
            masks.append(decode(annotation["segmentation"], record["height"], record["width"]))
            classes.append(annotation["category_id"])
    size = (record["height"], record["width"]) if "height" in record else labels.shape
    output["instances"] = instances(masks, classes, size)
    return output


def decode(code: Any, height: int, width: int) -> np.ndarray:
    if isinstance(code, list):
        code = mask_utils.merge(mask_utils.frPyObjects(code, height, width))
    return mask_utils.decode(code).astype(bool)


def instances(masks: list[np.ndarray], classes: list[int], size: tuple[int, int]) -> Instances:
    return Instances(
        size,
        pred_masks=torch.from_numpy(np.stack([*masks, np.zeros(size, bool)])[:-1]),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.linspace(1, 0.5, len(classes)),
    )


def shifted(output: Output) -> Output:
    """Return the output moved one pixel to the right."""
    moved = {**output}
    if "label_map" in moved:
        moved["label_map"] = output["label_map"].roll(1, 1)
    if "panoptic_seg" in moved:
        ids, segments = output["panoptic_seg"]
        moved["panoptic_seg"] = ids.roll(1, 1), segments
    fields = output["instances"].get_fields()
    moved["instances"] = Instances(
        output["instances"].image_size, **{**fields, "pred_masks": fields["pred_masks"].roll(1, 2)}
    )
    return moved


def evaluated(
    case: Case, out: Path, change: Callable[[Output], Output], **options: bool
) -> dict[str, dict[str, float]]:
    cfg = tiny_config(
        DATASETS__TEST=(case.name,), **{f"TEST__{key}": value for key, value in options.items()}
    )
    evaluator = build_evaluator(cfg, case.name, out)
    metadata = MetadataCatalog.get(case.name)
    for record in DatasetCatalog.get(case.name):
        evaluator.process([record], [change(perfect(record, metadata))])
    return evaluator.evaluate()


MAIN = {"sem_seg": ("mIoU",), "segm": ("AP", "boundary_AP"), "panoptic_seg": ("PQ", "boundary_PQ")}


def main_metrics(results: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: results[task][name] for task in results for name in MAIN[task] if name in results[task]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_saved_predictions_get_the_scores_of_the_evaluation(
    case: Case,
    roots: Callable[[Case], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = roots(case)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    results = evaluated(case, tmp_path, shifted, BOUNDARY=True, SAVE_PREDICTIONS=True)
    assert all(0 < value < 100 for value in main_metrics(results).values())
    for task, arguments in commands(case, root, tmp_path / "submission", results).items():
        found = score(*arguments)
        for metric, value in results[task].items():
            if task != "sem_seg" or case.tree is cityscapes or "-" not in metric:  # else named by numbers
                assert found[metric] == pytest.approx(value, nan_ok=True)


def commands(case: Case, root: Path, saved: Path, results: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the arguments of `mask2former score` for the files of each task."""
    metadata = MetadataCatalog.get(case.name)
    chosen: dict[str, list[Any]] = {}
    if "panoptic_seg" in results:
        truth = ["--gt-json", metadata.panoptic_json, "--gt-dir", metadata.panoptic_root]
        pred = ["--pred-json", saved / "panoptic.json", "--pred-dir", saved / "panoptic"]
        ratio = "0.005" if case.tree is cityscapes else "0.02"
        chosen["panoptic_seg"] = ["panoptic", *truth, *pred, "--boundary", ratio]
    if "segm" in results and case.tree is cityscapes:
        folders = ["--gt-dir", root / CITYSCAPES, "--pred-dir", saved / "instance"]
        chosen["segm"] = ["cityscapes-instances", *folders, "--boundary"]
    elif "segm" in results:
        style = ["--lvis"] if case.tree is lvis else []
        files = ["--gt", metadata.json_file, "--results", saved / "instance.json"]
        chosen["segm"] = ["instances", *files, "--boundary", *style]
    if "sem_seg" in results and case.labels:
        command = "cityscapes-semantic" if case.tree is cityscapes else "semantic"
        folders = ["--gt-dir", root / case.labels, "--pred-dir", saved / "semantic"]
        chosen["sem_seg"] = [command, *folders, *case.flags]
    return chosen
