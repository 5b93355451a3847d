"""Benchmark of the metrics on synthetic data: against the official tools, and against hotcoco alone.

    python benchmarks/metrics.py

The sides read the same files or records in turns, and their results are printed. Times are of the processor,
summed over threads, so that other work on the machine counts little. This needs `pip install .[dev]`, for
cityscapesscripts.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as cityscapes
from measure import alternate, ratio, run_alone, table
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation.coco.ap import average_precision
from mask2former.evaluation.coco.precisions import MAX_RESULTS, mask_evaluation
from mask2former.evaluation.panoptic.quality import panoptic_quality
from mask2former.evaluation.semantic.miou import confusion_matrix, mean_iou, mean_iou_of_folders
from mask2former.utils.label_maps import write_segment_ids

HEIGHT, WIDTH = 480, 640
PANOPTIC_IMAGES, SEGMENTS, PANOPTIC_CLASSES = 50, 12, 20
SEMANTIC_IMAGES, SEMANTIC_CLASSES = 50, 150
AP_IMAGES, TRUE_OBJECTS, RESULTS, CLASSES = 200, 20, 100, 80
CORNERS = np.linspace(0, 2 * np.pi, 24, endpoint=False)

SIDES = ("ours", "official", "hotcoco")

Record = dict[str, Any]


def quietly(run: Any, *args: Any) -> Any:
    """Return the result of a call without its output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run(*args)


# --- panoptic quality ---


def draw_segments(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw wavy ground-truth segments, and predictions that are moved a little; ids are 1, 2, ..."""
    y, x = np.mgrid[:HEIGHT:2, :WIDTH:2]
    centers = random.uniform((0, 0), (HEIGHT, WIDTH), (SEGMENTS, 2))
    waves = 15 * np.sin(x / 23 + random.uniform(0, 6)) + 15 * np.sin(y / 17 + random.uniform(0, 6))
    maps = []
    for shift in (0, random.normal(scale=12, size=(SEGMENTS, 2))):
        distances = [np.hypot(y - cy + waves, x - cx - waves) for cy, cx in centers + shift]
        maps.append((np.argmin(distances, axis=0) + 1).repeat(2, axis=0).repeat(2, axis=1))
    maps[0][:20, :60] = 0
    return maps[0], maps[1]


def describe(ids: np.ndarray, categories: np.ndarray) -> list[Record]:
    """Return the segments of a map as the official JSON lists them."""
    areas = np.bincount(ids.ravel(), minlength=SEGMENTS + 1)
    return [
        {"id": i, "category_id": int(categories[i]), "area": int(areas[i]), "iscrowd": 0}
        for i in range(1, SEGMENTS + 1)
        if areas[i]
    ]


def save_panoptic(folder: Path) -> list[Path]:
    """Write ground truth and predictions; return the JSON file and the folder of each."""
    random = np.random.default_rng(0)
    content: dict[str, Record] = {name: {"annotations": []} for name in ("truth", "predicted")}
    content["truth"]["categories"] = [
        {"id": k, "name": f"class {k}", "isthing": k % 2} for k in range(PANOPTIC_CLASSES)
    ]
    for image in range(PANOPTIC_IMAGES):
        categories = random.integers(PANOPTIC_CLASSES, size=SEGMENTS + 1)
        for name, ids in zip(content, draw_segments(random), strict=True):
            (folder / name).mkdir(exist_ok=True)
            write_segment_ids(folder / name / f"{image}.png", ids)
            annotation = {"image_id": image, "file_name": f"{image}.png"}
            content[name]["annotations"].append(annotation | {"segments_info": describe(ids, categories)})
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return [path for name in content for path in (folder / f"{name}.json", folder / name)]


def compare_panoptic(folder: Path) -> list[str]:
    """Return a row of the table."""
    files = save_panoptic(folder)
    cityscapes.pq_compute_multi_core = lambda *args: cityscapes.pq_compute_single_core(0, *args)
    truth, truth_pngs, pred, pred_pngs = map(str, files)

    def official() -> float:
        results = quietly(cityscapes.evaluatePanoptic, *files, folder / "results.json")
        return float(100 * results["All"]["pq"])

    def library() -> float:
        evaluation = hotcoco.panoptic.PanopticEval(truth, pred, gt_folder=truth_pngs, pred_folder=pred_pngs)
        evaluation.evaluate()
        return float(100 * evaluation.stats[0])

    sides = {"ours": lambda: panoptic_quality(*files)["PQ"], "official": official, "hotcoco": library}
    what = f"PQ of {PANOPTIC_IMAGES} images, from files: cityscapesscripts"
    return row(what, sides, 1000 / PANOPTIC_IMAGES, "ms an image")


# --- mean IoU ---


def save_semantic(folder: Path) -> tuple[Path, Path]:
    """Write label maps of 8 bits of ground truth and predictions; return their folders."""
    random = np.random.default_rng(0)
    folders = folder / "gt", folder / "pred"
    for image in range(SEMANTIC_IMAGES):
        classes = random.integers(SEMANTIC_CLASSES, size=SEGMENTS + 1)
        for target, ids in zip(folders, draw_segments(random), strict=True):
            target.mkdir(exist_ok=True)
            labels = np.where(ids == 0, 255, classes[ids]).astype(np.uint8)
            Image.fromarray(labels).save(target / f"{image}.png")
    return folders


def compare_semantic(folder: Path) -> list[list[str]]:
    """Return two rows: from files, and of maps in memory, as an evaluator gets them."""
    folders = save_semantic(folder)
    names = [f"{image}.png" for image in range(SEMANTIC_IMAGES)]
    pairs = [[np.asarray(Image.open(folder / name)) for folder in folders] for name in names]

    def our_maps() -> float:
        counts = [confusion_matrix(*pair, SEMANTIC_CLASSES, 255, ("gt", "pred")) for pair in pairs]
        return mean_iou(sum(counts), [str(k) for k in range(SEMANTIC_CLASSES)])["mIoU"]

    def library(files: bool) -> float:
        evaluation = hotcoco.semantic.SemanticEval(SEMANTIC_CLASSES)
        if files:
            evaluation.update_folders(*folders)
        for pair in () if files else pairs:
            evaluation.update(*pair)
        return float(100 * evaluation.stats[0])

    our_files = partial(mean_iou_of_folders, *folders, label_ids=range(SEMANTIC_CLASSES))
    rows = {
        "in memory": {"ours": our_maps, "hotcoco": partial(library, False)},
        "from files": {"ours": lambda: our_files()["mIoU"], "hotcoco": partial(library, True)},
    }
    what = f"mIoU of {SEMANTIC_IMAGES} images, {SEMANTIC_CLASSES} classes"
    return [
        row(f"{what}, {how}", sides, 1000 / SEMANTIC_IMAGES, "ms an image") for how, sides in rows.items()
    ]


# --- average precision ---


def ellipse(center: np.ndarray, radii: np.ndarray) -> list[float]:
    """Return a polygon x, y, x, y, ... within the image."""
    x = np.clip(center[0] + radii[0] * np.cos(CORNERS), 0, WIDTH)
    y = np.clip(center[1] + radii[1] * np.sin(CORNERS), 0, HEIGHT)
    return np.stack([x, y], axis=1).ravel().tolist()


def draw_instances() -> tuple[Record, list[Record]]:
    """Draw ground truth and results in COCO's formats.

    Each object has several results of different quality, half of them of a wrong class, since a query gives
    results of several classes.
    """
    random = np.random.default_rng(0)
    annotations: list[Record] = []
    results: list[Record] = []
    for image in range(1, AP_IMAGES + 1):
        centers = random.uniform((0, 0), (WIDTH, HEIGHT), (TRUE_OBJECTS, 2))
        radii = np.exp(random.uniform(np.log(6), np.log(120), (TRUE_OBJECTS, 2)))
        classes = random.integers(1, CLASSES + 1, TRUE_OBJECTS)
        which = np.arange(RESULTS) % TRUE_OBJECTS
        errors = random.uniform(0, 0.4, (RESULTS, 1)) * random.normal(size=(RESULTS, 2))
        drawn = [*zip(centers, radii, strict=True)]
        drawn += [*zip(centers[which] + errors * radii[which], radii[which], strict=True)]
        codes = mask_utils.frPyObjects([ellipse(*shape) for shape in drawn], HEIGHT, WIDTH)
        areas = mask_utils.area(codes).tolist()
        codes = [{"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()} for code in codes]
        scores = np.clip(1 - np.abs(errors).max(1) + random.normal(scale=0.2, size=RESULTS), 0, 1)
        for i in range(TRUE_OBJECTS):
            record = {"image_id": image, "category_id": int(classes[i]), "segmentation": codes[i]}
            annotations.append({**record, "id": len(annotations) + 1, "area": areas[i], "iscrowd": 0})
        found = np.where(
            random.random(RESULTS) < 0.5, classes[which], random.integers(1, CLASSES + 1, RESULTS)
        )
        for i in range(RESULTS):
            record = {"image_id": image, "category_id": int(found[i])}
            code = codes[TRUE_OBJECTS + i]
            results.append({**record, "segmentation": code, "score": float(scores[i])})
    images = [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(1, AP_IMAGES + 1)]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def official(truth: Record, results: list[Record]) -> COCOeval:
    """Return pycocotools' evaluation of copies of the records, as it writes into them."""
    ground = COCO()
    ground.dataset = {**truth, "annotations": [dict(item) for item in truth["annotations"]]}
    quietly(ground.createIndex)
    return COCOeval(ground, quietly(ground.loadRes, [dict(item) for item in results]), "segm")


def whole_official(truth: Record, results: list[Record]) -> float:
    """Return the AP in percent of records by pycocotools."""
    evaluation = official(truth, results)
    evaluate_and_accumulate(evaluation)
    quietly(evaluation.summarize)
    return float(100 * evaluation.stats[0])


def evaluate_and_accumulate(evaluation: Any) -> None:
    """Run `evaluate` and `accumulate`, which both libraries have."""
    quietly(evaluation.evaluate)
    quietly(evaluation.accumulate)


def library_alone(truth: Record, results: list[Record]) -> float:
    """Return the AP in percent of records by hotcoco, which checks neither ids nor masks."""
    ground = hotcoco.COCO(truth)
    evaluation = hotcoco.COCOeval(ground, ground.load_res(results), "segm")
    evaluation.params.maxDets = [MAX_RESULTS]
    evaluate_and_accumulate(evaluation)
    table = evaluation.eval["precision"]
    return float(100 * table[:, :, :, 0][table[:, :, :, 0] > -1].mean())


def compare_instances() -> list[list[str]]:
    """Return two rows: evaluate and accumulate alone, and all from records to AP."""
    truth, results = draw_instances()
    reference, ours = official(truth, results), mask_evaluation(truth, results)
    ours.params.maxDets = [MAX_RESULTS]
    parts = {
        "ours": lambda: evaluate_and_accumulate(ours),
        "official": lambda: evaluate_and_accumulate(reference),
    }
    whole = {
        "ours": lambda: average_precision(truth, results)["AP"],
        "official": lambda: whole_official(truth, results),
        "hotcoco": lambda: library_alone(truth, results),
    }
    what = f"AP of {AP_IMAGES} images, {TRUE_OBJECTS} objects and {RESULTS} results each"
    return [
        row(f"{what}, evaluate and accumulate: pycocotools", parts, 1, "s"),
        row(f"{what}, records to AP: pycocotools", whole, 1, "s"),
    ]


def row(what: str, sides: Mapping[str, Callable[[], Any]], scale: float, unit: str) -> list[str]:
    """Return a row of the table: times of all sides, their ratios to ours, and the results."""
    found: dict[str, Any] = {}

    def keeping(name: str) -> Callable[[], None]:
        return lambda: found.update({name: sides[name]()})

    seconds = alternate({name: keeping(name) for name in sides}, runs=3, clock=time.process_time)
    others = [name for name in SIDES if name != "ours"]
    times = [f"{scale * seconds[name]:.2f} {unit}" if name in sides else "–" for name in SIDES]
    ratios = [ratio(seconds[name], seconds["ours"]) if name in sides else "–" for name in others]
    results = ["–" if found.get(name) is None else f"{found[name]:.9f}" for name in SIDES]
    return [what, *times, *ratios, *results]


def report() -> str:
    """Return the table of all metrics."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            compare_panoptic(Path(folder)),
            *compare_instances(),
            *compare_semantic(Path(folder)),
        ]
    times, results = [f"{name}, time" for name in SIDES], [f"{name}, result" for name in SIDES]
    head = ["metric: official tool", *times, "official / ours", "hotcoco / ours", *results]
    return (
        "Processor time of the metrics, of the official tools and of hotcoco alone, on synthetic data. "
        "hotcoco alone takes number ids only, and does not check masks.\n\n" + table([head, *rows])
    )


if __name__ == "__main__":
    run_alone(report)
