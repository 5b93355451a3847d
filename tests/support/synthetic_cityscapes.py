"""Small synthetic Cityscapes images, predictions for them, and cityscapesscripts' evaluators for comparison.

File names and label ids are Cityscapes' own; the images are much smaller.
"""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.evaluation.cityscapes.ground_truth import THINGS, InstanceMap
from mask2former.evaluation.cityscapes.matching import joined, match, precision_table
from mask2former.structures import Instances, RunLengthMasks
from mask2former.utils.cityscapes_labels import label_ids_of

SIZE = (48, 72)
ROAD = 7
CLASSES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, *THINGS]
BACKGROUND = [0, 1, 4, 7, 8, 11, 21, 23, 29]
IDS = ["aachen_000000_000019", "bad-honnef_000001_000007", "ulm_000010_000000"]

Found = list[tuple[np.ndarray, int, float]]  # mask, label id, score


def metadata(things=range(8)):
    """Return the metadata of a dataset whose things have the given contiguous ids."""
    return SimpleNamespace(
        name="synthetic",
        evaluator_type="cityscapes_instance",
        official_label_ids=CLASSES,
        ignore_label=255,
        thing_dataset_id_to_contiguous_id=dict(zip(THINGS, things, strict=True)),
    )


def draw_images(rng):
    return {image_id: draw_ids(rng) for image_id in IDS}


def draw_ids(rng):
    """Draw instance ids: two backgrounds and, over them, large and small objects, groups, caravans."""
    ids = np.empty(SIZE, np.int32)
    ids[:, :30], ids[:, 30:] = rng.choice(BACKGROUND, 2)
    for number in range(rng.integers(0, 9)):
        label = int(rng.choice([24, 26, 26, 26, 33, 29]))
        y, x = rng.integers(0, (36, 56))
        h, w = rng.integers(6, 22, 2)
        ids[y : y + h, x : x + w] = label if rng.random() < 0.25 else label * 1000 + number
    return ids


def predict(ids, rng):
    """Return shifted and cut objects, groups and void: some twice, some with a wrong label, ties."""
    found: Found = []
    for value in [*np.unique(ids).tolist() * 2, 0]:
        mask = np.roll(ids == value, rng.integers(-2, 3, 2), (0, 1))
        mask[:, : rng.integers(0, 40)] &= rng.random() < 0.7
        true = value // 1000 if value >= 1000 else value
        label = true if true in THINGS and rng.random() < 0.9 else int(rng.choice([24, 26, 33]))
        if rng.random() < 0.8:
            found.append((mask, label, round(float(rng.random()), 1)))
    return [*found, (np.zeros(SIZE, bool), 26, 0.9), (ids > 1000, 7, 0.9)]


def box(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def scene(*regions):
    """Return instance ids: road, and regions over it."""
    ids = np.full(SIZE, ROAD, np.int32)
    for value, mask in regions:
        ids[mask] = value
    return ids


def save_truth(folder, images):
    """Write `<city>/<id>_gtFine_{instanceIds,labelIds}.png`; return the folder."""
    for image_id, ids in images.items():
        city = folder / image_id.split("_")[0]
        city.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids.astype(np.uint16)).save(city / f"{image_id}_gtFine_instanceIds.png")
        labels = label_ids_of(ids).astype(np.uint8)
        Image.fromarray(labels).save(city / f"{image_id}_gtFine_labelIds.png")
    return folder


def save_found(folder, found):
    """Write predictions in the benchmark's format, masks next to the text files; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, objects in found.items():
        lines = []
        for number, (mask, label, score) in enumerate(objects):
            Image.fromarray(mask.astype(np.uint8) * 7).save(folder / f"{image_id}_{number}.png")
            lines.append(f"{image_id}_{number}.png {label} {score}\n")
        (folder / f"{image_id}.txt").write_text("".join(lines))
    return folder


def records(folder, images):
    """Return the dataset dicts of saved images."""
    files = {id: next(folder.rglob(f"{id}*instanceIds.png")) for id in images}
    return [{"image_id": id, "instance_ids_file_name": str(file)} for id, file in files.items()]


def instances(found, first_class=0, *, as_runs=False):
    """Return what a model would; it has no classes for labels without objects."""
    found = [item for item in found if item[1] in THINGS]
    masks = torch.from_numpy(np.array([mask for mask, _, _ in found], bool).reshape(-1, *SIZE))
    fields = {
        "pred_masks": RunLengthMasks(SIZE, [runs(mask) for mask in masks]) if as_runs else masks,
        "pred_classes": torch.tensor([THINGS.index(label) + first_class for _, label, _ in found]).long(),
        "scores": torch.tensor([score for _, _, score in found], dtype=torch.float64),
    }
    return {"instances": Instances(SIZE, **fields)}


def runs(mask):
    """Return the runs of a mask, pixel by pixel."""
    found, pixels = [], mask.T.flatten().tolist()
    for place, inside in enumerate(pixels):
        if inside and (place == 0 or not pixels[place - 1]):
            found.append([place, place])
        if inside:
            found[-1][1] = place + 1
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)


def table_of(truth_and_found):
    """Return the AP of each class and threshold, of maps in memory."""
    matches = []
    for ids, found in truth_and_found:
        values = np.unique(ids)
        truth = InstanceMap(ids, values, label_ids_of(values), "synthetic")
        masks = RunLengthMasks(SIZE, [runs(torch.from_numpy(mask)) for mask, _, _ in found])
        matches.append(match(truth, masks, [label for _, label, _ in found], [score for *_, score in found]))
    return precision_table(joined(matches))


class CityscapesScripts:
    """cityscapesscripts 2.3.0, made to run with today's numpy; the test restores its global state."""

    def __init__(self, folder, monkeypatch):
        self._folder, self._patch = folder, monkeypatch
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(folder)  # matches.json is written here
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)

    def instances(self, gt_dir, pred_dir):
        """Return the results of evalInstanceLevelSemanticLabeling."""
        script = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
        self._patch.setattr(
            script,
            "writeDict2JSON",
            lambda content, file: Path(file).write_text(json.dumps(content, default=lambda o: o.item())),
        )
        return self._run(script, gt_dir, pred_dir, "instanceIds", script.getPrediction)

    def pixels(self, gt_dir, pred_dir):
        """Return the results of evalPixelLevelSemanticLabeling."""
        script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        return self._run(
            script, gt_dir, pred_dir, "labelIds", lambda gt, args: script.getPrediction(args, gt)
        )

    def panoptic(self, *files):
        """Return the results of evalPanopticSemanticLabeling, in percent, under our names."""
        script = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
        self._patch.setattr(
            script, "pq_compute_multi_core", lambda *args: script.pq_compute_single_core(0, *args)
        )
        found = script.evaluatePanoptic(*map(str, files), str(self._folder / "results.json"))
        results: dict[str, Any] = {}
        for suffix, group in {"": "All", "_th": "Things", "_st": "Stuff"}.items():
            results |= {name + suffix: 100 * found[group][name.lower()] for name in ("PQ", "SQ", "RQ")}
            results["n" + suffix] = found[group]["n"]
        return results

    def _run(self, script, gt_dir, pred_dir, kind, prediction_of):
        args = copy.copy(script.args)
        args.predictionPath, args.predictionWalk = str(pred_dir), None
        args.gtInstancesFile = str(self._folder / "gtInstances.json")
        Path(args.gtInstancesFile).unlink(missing_ok=True)  # a cache of earlier ground truth
        args.JSONOutput, args.quiet = False, True
        truths = sorted(str(path) for path in gt_dir.rglob(f"*_gtFine_{kind}.png"))
        return script.evaluateImgLists([prediction_of(gt, args) for gt in truths], truths, args)
