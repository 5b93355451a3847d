"""A tiny synthetic dataset in both COCO formats, with every kind of annotation and its masks as arrays."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.data.ground_truth.geometry import AxisGeometry, Geometry, GroundTruth
from mask2former.data.ground_truth.polygons import Patch
from mask2former.data.ground_truth.readers import DrawnGroundTruth

# Category ids with gaps, and one that is 0. Contiguous: donut 0, box 1, sky 2, ground 3.
CATEGORIES = [
    {"id": 200, "name": "ground", "isthing": 0, "color": [0, 200, 0]},
    {"id": 0, "name": "donut", "isthing": 1, "color": [200, 0, 0]},
    {"id": 7, "name": "box", "isthing": 1, "color": [0, 0, 200]},
    {"id": 90, "name": "sky", "isthing": 0, "color": [9, 9, 9]},
]
COLORS = {0: (250, 10, 10), 7: (10, 10, 250), 90: (120, 190, 240), 200: (60, 160, 60)}
BIG_ID = 70_000  # a segment id that needs all three bytes


def rectangle(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def donut(size: tuple[int, int]) -> np.ndarray:
    return rectangle(size, 2, 3, 12, 13) & ~rectangle(size, 5, 6, 9, 10)


def uncompressed_rle(mask: np.ndarray) -> dict:
    """Return run lengths, computed by a loop: column by column, the first run is of zeros."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed_rle(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def ground_truth_of(classes: np.ndarray, masks: np.ndarray) -> DrawnGroundTruth:
    """Return ground truth with the masks (N, H, W)."""
    return DrawnGroundTruth(classes, lambda i, geometry: Patch.whole(geometry.apply(masks[i])))


def all_masks(ground_truth: GroundTruth, geometry: Geometry) -> np.ndarray:
    """Return the masks (N, h, w) of all segments, visible or not."""
    indices, masks = ground_truth.visible(geometry)
    assert masks.any((1, 2)).all()
    every = np.zeros((len(ground_truth.classes), *geometry.size), dtype=bool)
    every[indices] = masks
    return every


def geometry_of(rows: list[int], cols: list[int]) -> Geometry:
    """Return the geometry that shows the given rows and columns; -1 is padding."""
    return Geometry(*(AxisGeometry(np.array(pixels, dtype=int), 1.0, 0.0) for pixels in (rows, cols)))


@dataclass
class SyntheticCoco:
    """Paths of the files, and their content: `masks[image_id]` is a list of (category id, mask, is crowd)."""

    root: Path
    masks: dict[int, list[tuple[int, np.ndarray, bool]]] = field(default_factory=dict)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def instances_json(self) -> Path:
        return self.root / "instances.json"

    @property
    def panoptic_json(self) -> Path:
        return self.root / "panoptic.json"

    @property
    def panoptic_root(self) -> Path:
        return self.root / "panoptic"


def write_dataset(root: Path) -> SyntheticCoco:
    """Write images: 1 donut and box; 2 box and a crowd of donuts; 3 a crowd; 5 stuff only."""
    synthetic = SyntheticCoco(root)
    big, small = (24, 32), (20, 16)
    synthetic.masks = {
        1: [(0, donut(big), False), (7, rectangle(big, 10, 20, 20, 30), False)],
        2: [(7, rectangle(small, 1, 1, 8, 9), False), (0, rectangle(small, 12, 0, 20, 16), True)],
        3: [(0, rectangle(small, 4, 4, 12, 12), True)],
        5: [],
    }
    sizes = {1: big, 2: small, 3: small, 5: small}
    shapes = {
        1: [uncompressed_rle(donut(big)), polygon(10, 20, 20, 30)],
        2: [compressed_rle(synthetic.masks[2][0][1]), uncompressed_rle(synthetic.masks[2][1][1])],
        3: [uncompressed_rle(synthetic.masks[3][0][1])],
        5: [],
    }
    synthetic.images.mkdir(parents=True)
    synthetic.panoptic_root.mkdir()
    images, instances, panoptic = [], [], []
    for image_id, size in sizes.items():
        name = f"{image_id:04d}"
        height, width = size
        images.append({"id": image_id, "file_name": f"{name}.png", "height": height, "width": width})
        rows = zip(synthetic.masks[image_id], shapes[image_id], strict=True)
        for (category, _, crowd), shape in rows:
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "segmentation": shape,
                    "bbox": [0, 0, 1, 1],
                }
            )
        segments = _write_images(synthetic, name, image_id, size)
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
    things = [category for category in CATEGORIES if category["isthing"]]
    write_json(synthetic.instances_json, {"images": images, "annotations": instances, "categories": things})
    write_json(synthetic.panoptic_json, {"images": images, "annotations": panoptic, "categories": CATEGORIES})
    return synthetic


def _write_images(synthetic: SyntheticCoco, name: str, image_id: int, size: tuple[int, int]) -> list[dict]:
    """Draw sky over ground, a void row at the bottom, and things on top; ids use all three bytes."""
    sky, ground = rectangle(size, 0, 0, 11, size[1]), rectangle(size, 11, 0, size[0] - 1, size[1])
    layers = [(90, sky, False), (200, ground, False), *synthetic.masks[image_id]]
    image, ids = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int64)
    segments = []
    for number, (category, mask, crowd) in enumerate(layers, start=1):
        segment_id = number * BIG_ID
        image[mask], ids[mask] = COLORS[category], segment_id
        segments.append({"id": segment_id, "category_id": category, "iscrowd": int(crowd), "area": 1})
    Image.fromarray(image).save(synthetic.images / f"{name}.png")
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(channels).save(synthetic.panoptic_root / f"{name}.png")
    return segments


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
