"""Memory and time of `mask2former predict` on a large image.

    python benchmarks/large_images.py model_final.pth [--side 13000] [--image img.jpg]

For each task, the command draws a square image of that side and a small one, each in a fresh
process. The model's own memory is in both peaks, since both images are resized to the same size for it; the
difference, divided by the pixels that the large image has more, is what each pixel takes.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from measure import MB, child_peak_mb, machine, table
from PIL import Image

from mask2former.modeling.postprocessing.inference import TASKS

SMALL = 1_500
CELLS = 64  # of a side of the drawn image


def save_image(file: Path, side: int, source: str | None) -> None:
    """Save a square PNG: `source` resized, or a checkerboard of random colors."""
    if source:
        image = Image.open(source).convert("RGB")
    else:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8))
    image.resize((side, side), Image.Resampling.BICUBIC).save(file, compress_level=1)


def measure(task: str, image: Path, checkpoint: str) -> tuple[float, float]:
    """Return the peak in MB and the seconds of a process that draws a task's result."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mask2former", "predict", "--input", str(image), "--task", task]
    output = ["--output", str(image.with_name("overlay.png")), "--max-megapixels", "1000"]
    peak = child_peak_mb([*command, *output, "--opts", "MODEL.WEIGHTS", checkpoint])
    return peak, time.perf_counter() - start


def report(checkpoint: str, side: int, source: str | None) -> str:
    """Return a table of the tasks."""
    rows = [["task", f"{SMALL}x{SMALL}", f"{side}x{side}", "bytes a pixel above the small image"]]
    with tempfile.TemporaryDirectory() as folder:
        small, large = (Path(folder, f"{length}.png") for length in (SMALL, side))
        with ProcessPoolExecutor(1) as pool:  # what this process holds would count in its children's peaks
            pool.submit(save_image, small, SMALL, source).result()
            pool.submit(save_image, large, side, source).result()
        for task in TASKS:
            base, base_time = measure(task, small, checkpoint)
            peak, seconds = measure(task, large, checkpoint)
            share = (peak - base) * MB / (side**2 - SMALL**2)
            cells = f"{base:.0f} MB, {base_time:.0f} s", f"{peak:.0f} MB, {seconds:.0f} s", f"{share:.1f}"
            rows.append([task, *cells])
    return f"{machine()}\n\n{table(rows)}"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="a trained model of this project, by its path")
    parser.add_argument("--side", type=int, default=13_000, help="of the large image, in pixels")
    parser.add_argument("--image", help="the image to enlarge; default: a checkerboard of random colors")
    args = parser.parse_args()
    sys.stdout.write(report(args.checkpoint, args.side, args.image) + "\n")


if __name__ == "__main__":
    main()
