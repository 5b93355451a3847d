"""Draw docs/images/coffee_segmented.jpg: the photograph beside its ground truth, annotated by hand.

python scripts/draw_readme_image.py
"""

from pathlib import Path

import numpy as np

from mask2former.drawing.colors import class_colors
from mask2former.drawing.overlay import draw_regions
from mask2former.drawing.regions import Region
from mask2former.drawing.shapes import label_shapes
from mask2former.utils.image_io import read_image, write_image
from mask2former.utils.label_maps import read_label_map

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = {1: "saucer", 2: "cup", 3: "spoon", 4: "table"}  # 0 is unlabeled


def photo_and_overlay() -> np.ndarray:
    """Return the photograph (H, W, 3) and its overlay side by side, (H, 2 W, 3) uint8 RGB."""
    photo = read_image(IMAGES / "coffee.jpg")
    labels = read_label_map(IMAGES / "coffee_labels.png")
    colors = class_colors(len(NAMES) + 1)
    shapes = label_shapes(labels, list(NAMES))
    regions = [Region(shape, colors[k], k, NAMES[k]) for k, shape in zip(NAMES, shapes, strict=True)]
    return np.concatenate([photo, draw_regions(photo, regions)], axis=1)


if __name__ == "__main__":
    write_image(IMAGES / "coffee_segmented.jpg", photo_and_overlay())
