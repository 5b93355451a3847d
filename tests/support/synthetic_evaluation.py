"""Small synthetic datasets in COCO's formats, and outputs of models, for the tests of the metrics.

Categories: 3 and 90 are things, 7 and 200 are stuff; contiguous ids are 0 to 3 in the order 3, 90, 7, 200.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_coco import compressed_rle as rle
from torch import nn

from mask2former.evaluation.evaluator import inference_on_dataset
from mask2former.structures import Instances

CATEGORIES = [
    {"id": 3, "name": "circle", "isthing": 1},
    {"id": 90, "name": "triangle-like", "isthing": 1},
    {"id": 7, "name": "sand", "isthing": 0},
    {"id": 200, "name": "water", "isthing": 0},
]
CONTIGUOUS = {category["id"]: place for place, category in enumerate(CATEGORIES)}
IGNORE = 255
SIZE = (24, 32)


class Replay(nn.Module):
    """Model that returns the outputs in its input."""

    def __init__(self):
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, inputs):
        self.modes.append(self.training)
        return [record["output"] for record in inputs]


def metrics_of(evaluator, *batches):
    """Return the metrics of the evaluator's only task for batches of inputs with their outputs."""
    (metrics,) = inference_on_dataset(Replay(), batches, evaluator).values()
    return metrics


def draw_map(rng):
    """Draw a map of segment ids and its segments: two halves of stuff, things, a corner of void, crowds."""
    ids = np.empty(SIZE, np.int64)
    stuff, things = rng.choice(2**24 - 1, (2, 6), replace=False) + 1
    ids[:12], ids[12:] = stuff[:2]
    category = dict(zip(stuff[:2].tolist(), rng.permutation([7, 200]).tolist(), strict=True))
    for thing in things[: rng.integers(1, 7)].tolist():
        y, x, h, w = rng.integers((0, 0, 4, 4), (18, 24, 14, 16))
        ids[y : y + h, x : x + w] = thing
        category[thing] = int(rng.choice([3, 90]))
    ids[: rng.integers(1, 8), : rng.integers(1, 12)] = 0
    segments = [
        {
            "id": segment,
            "category_id": category[segment],
            "area": int((ids == segment).sum()),
            "iscrowd": int(category[segment] in (3, 90) and rng.random() < 0.3),
        }
        for segment in category
        if (ids == segment).any()
    ]
    return ids, segments


def disturb(ids, segments, rng):
    """Return a prediction: the ground truth shifted, with a hole and a few categories changed."""
    found = np.roll(ids, rng.integers(-2, 3, 2), (0, 1))
    y, x = rng.integers(0, (20, 28))
    found[y : y + 4, x : x + 8] = rng.choice([0, 77, *(segment["id"] for segment in segments)])
    category = {segment["id"]: segment["category_id"] for segment in segments} | {77: 3}
    return found, [
        {"id": id, "category_id": category[id] if rng.random() < 0.8 else int(rng.choice([3, 90, 7, 200]))}
        for id in np.unique(found).tolist()
        if id
    ]


def save_ids(path, ids):
    """Write a panoptic PNG, channel by channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def save_panoptic(folder, maps, **content):
    """Write (image id, map, segments) in the official format; return the JSON file and the folder of PNGs."""
    annotations = []
    for image_id, ids, segments in maps:
        save_ids(folder / f"{image_id}.png", ids)
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".json")
    file.write_text(json.dumps({"annotations": annotations, **content}))
    return file, folder


def save_instances(file, maps):
    """Write the things of (image id, map, segments) as COCO instances; annotation ids start at 0."""
    images, annotations = [], []
    for image_id, ids, segments in maps:
        images.append({"id": image_id, "height": ids.shape[0], "width": ids.shape[1]})
        annotations += [
            {**segment, "image_id": image_id, "segmentation": rle(ids == segment["id"])}
            for segment in segments
            if segment["category_id"] in (3, 90)
        ]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations)]
    things = [{"id": category["id"], "name": category["name"]} for category in CATEGORIES[:2]]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": things}))
    return file


def results_of(maps, rng=None):
    """Return COCO results equal to the things of (image id, map, segments); an rng gives scores with ties."""
    return [
        {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "segmentation": rle(ids == segment["id"]),
            "score": round(float(rng.random()), 1) if rng else 1.0,
        }
        for image_id, ids, segments in maps
        for segment in segments
        if segment["category_id"] in (3, 90)
    ]


EITHER_IDS = pytest.mark.parametrize(
    "dataset", [(5, 2, 11), ("ADE_val_1", "ADE_val_10", "b")], indirect=True, ids=["numbers", "names"]
)


class SyntheticDataset:
    """Dataset on disk with the ground truth of the three tasks, and predictions for it."""

    def __init__(self, folder, image_ids=(5, 2, 11), seed=0):
        rng = np.random.default_rng(seed)
        self.maps = [(image_id, *draw_map(rng)) for image_id in image_ids]
        self.disturbed = [(image_id, *disturb(ids, infos, rng)) for image_id, ids, infos in self.maps]
        self.json, self.pngs = save_panoptic(folder / "truth", self.maps, categories=CATEGORIES)
        self.instances = save_instances(folder / "instances.json", self.maps)
        self.metadata = SimpleNamespace(
            name="synthetic",
            panoptic_json=str(self.json),
            panoptic_root=str(self.pngs),
            json_file=str(self.instances),
            thing_dataset_id_to_contiguous_id={3: 0, 90: 1},
            stuff_dataset_id_to_contiguous_id=CONTIGUOUS,
            stuff_classes=[category["name"] for category in CATEGORIES],
            ignore_label=IGNORE,
        )

    def records(self, predictions):
        """Return the dataset dicts; `output` is what a model returns for `predictions`."""
        return [
            {
                "image_id": image_id,
                "file_name": f"somewhere/{image_id}.jpg",
                "pan_seg_file_name": str(self.pngs / f"{image_id}.png"),
                "segments_info": [{**s, "category_id": CONTIGUOUS[s["category_id"]]} for s in segments],
                "output": model_output(ids, infos),
            }
            for (image_id, _, segments), (_, ids, infos) in zip(self.maps, predictions, strict=True)
        ]


def model_output(ids, segments):
    """Return what a model would for a panoptic map, for all three tasks; void becomes class 0."""
    contiguous = [CONTIGUOUS[segment["category_id"]] for segment in segments]
    info = [
        {"id": s["id"], "isthing": c < 2, "category_id": c} for s, c in zip(segments, contiguous, strict=True)
    ]
    masks = torch.from_numpy(np.array([ids == s["id"] for s in segments], bool).reshape(-1, *ids.shape))
    sem_seg = torch.stack([masks[torch.tensor(contiguous) == c].any(0).float() for c in range(4)])
    things = [place for place, c in enumerate(contiguous) if c < 2]
    instances = Instances(
        ids.shape,
        pred_masks=masks[things],
        pred_classes=torch.tensor([contiguous[place] for place in things], dtype=torch.int64),
        scores=torch.linspace(1, 0.5, len(things)),
    )
    return {"panoptic_seg": (torch.from_numpy(ids).int(), info), "sem_seg": sem_seg, "instances": instances}
