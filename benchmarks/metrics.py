"""Benchmark of the metrics on synthetic data: PQ against cityscapesscripts, AP against pycocotools.

    python benchmarks/metrics.py

Both sides of a row read the same files or records, in one thread, and their results are printed. This needs
`pip install .[dev]`, for cityscapesscripts.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as cityscapes
from faster_coco_eval import COCOeval_faster
from measure import alternate, ratio, run_alone, table
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former.evaluation.coco.ap import average_precision
from mask2former.evaluation.coco.precisions import MAX_RESULTS, garbage_collection_off
from mask2former.evaluation.panoptic.quality import panoptic_quality
from mask2former.utils.label_maps import write_segment_ids

HEIGHT, WIDTH = 480, 640
PANOPTIC_IMAGES, SEGMENTS, PANOPTIC_CLASSES = 200, 12, 20
AP_IMAGES, TRUE_OBJECTS, RESULTS, CLASSES = 500, 20, 100, 80
CORNERS = np.linspace(0, 2 * np.pi, 24, endpoint=False)

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
    found: Record = {}

    def run_ours() -> None:
        found["ours"] = panoptic_quality(*files)["PQ"]

    def run_official() -> None:
        results = quietly(cityscapes.evaluatePanoptic, *files, folder / "results.json")
        found["official"] = 100 * results["All"]["pq"]

    seconds = alternate({"ours": run_ours, "official": run_official}, runs=3)
    what = f"PQ of {PANOPTIC_IMAGES} images, from files: cityscapesscripts"
    return [what, *cells(seconds, 1000 / PANOPTIC_IMAGES, "ms an image"), *results_of(found)]


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


def compare_instances() -> list[list[str]]:
    """Return two rows: evaluate and accumulate alone, and all from records to AP."""
    truth, results = draw_instances()
    found: Record = {}
    reference = official(truth, results)
    ours = COCOeval_faster(reference.cocoGt, reference.cocoDt, "segm")
    ours.params.maxDets = [MAX_RESULTS]
    ours.rle_iou_max_workers = 1

    def our_part() -> None:
        with garbage_collection_off():
            evaluate_and_accumulate(ours)

    parts = {"ours": our_part, "official": lambda: evaluate_and_accumulate(reference)}
    whole = {
        "ours": lambda: found.update(ours=average_precision(truth, results)["AP"]),
        "official": lambda: found.update(official=whole_official(truth, results)),
    }
    what = f"AP of {AP_IMAGES} images, {TRUE_OBJECTS} objects and {RESULTS} results each"
    alone, everything = alternate(parts, runs=3), alternate(whole, runs=3, warmup=0)
    return [
        [f"{what}, evaluate and accumulate: pycocotools", *cells(alone, 1, "s"), *results_of(found)],
        [f"{what}, records to AP: pycocotools", *cells(everything, 1, "s"), *results_of(found)],
    ]


def cells(seconds: dict[str, float], scale: float, unit: str) -> list[str]:
    """Return both times and their ratio."""
    times = [f"{scale * seconds[side]:.2f} {unit}" for side in ("ours", "official")]
    return [*times, ratio(seconds["official"], seconds["ours"])]


def results_of(found: Record) -> list[str]:
    """Return both results, in percent."""
    return [f"{found['ours']:.6f}", f"{found['official']:.6f}"]


def report() -> str:
    """Return the table of both metrics."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare_panoptic(Path(folder)), *compare_instances()]
    head = ["metric and official tool", "ours", "official", "ratio", "our result", "official"]
    return (
        "The metrics against the official tools, one thread each, on synthetic data. Our AP turns Python's "
        "garbage collector off.\n\n" + table([head, *rows])
    )


if __name__ == "__main__":
    run_alone(report)
