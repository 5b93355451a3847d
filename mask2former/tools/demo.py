"""The command `mask2former-demo`: draw what a trained model sees in images.

Each image's drawing gets the image's name in the output folder. An image that cannot be read is reported
and the rest go on; the exit code then is 1.
"""

import argparse
import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlparse

from fvcore.common.config import CfgNode
from tqdm import tqdm

from mask2former.config import load_config
from mask2former.engine.logger import setup_logger
from mask2former.modeling.precision import PREDICTION_PRECISIONS
from mask2former.predictor import (
    SCORE_THRESHOLD,
    Predictor,
    UntrainedModelError,
    require_trained_weights,
    stored_config,
)
from mask2former.utils.image_io import EXTENSIONS, write_image
from mask2former.utils.storage import is_remote
from mask2former.utils.visualize import legible_scale
from mask2former.weights import model_zoo as zoo
from mask2former.weights.load import read_checkpoint

DEFAULT_CONFIG = "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"
WEIGHTS = "MODEL.WEIGHTS"
FOUND = {"panoptic": "segments", "instance": "instances", "semantic": "classes"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the published demo."""
    parser = argparse.ArgumentParser(
        description="Draw what a trained model sees in images.",
        epilog=f"Example: --input a.jpg --opts {WEIGHTS} model_final.pth",
    )
    flag = parser.add_argument
    flag("--input", required=True, nargs="+", metavar="IMAGE", help="files, folders, globs or addresses")
    flag("--output", default="output", help="folder, or for one image a file (default: ./output)")
    flag("--config-file", metavar="FILE", help=f"default: the checkpoint's own, else {DEFAULT_CONFIG}")
    flag("--task", choices=FOUND, help="what to draw; default: the first of these that the model is set to")
    flag(
        "--confidence-threshold",
        type=float,
        metavar="P",
        help=f"draw instances scored P or more (default: {SCORE_THRESHOLD}) and panoptic segments above P "
        "(default: the config's)",
    )
    flag("--precision", choices=PREDICTION_PRECISIONS, default="fp32", help="bf16 needs fast bf16 hardware")
    flag("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override")
    return parser.parse_args(argv)


def find_images(inputs: Iterable[str]) -> list[str]:
    """The images that files, folders, globs and addresses stand for, in order.

    A folder or glob without any is kept as it is: reading it fails with a message that names it.
    """
    images = []
    for item in inputs:
        if Path(item).is_dir():
            files = sorted(str(path) for path in Path(item).iterdir() if path.suffix.lower() in EXTENSIONS)
        elif is_remote(item) or Path(item).exists():
            files = [item]
        else:
            files = sorted(glob.glob(item, recursive=True))
        images += files or [item]
    return images


def output_paths(images: Sequence[str], output: str) -> list[Path]:
    """Where each drawing goes: below the folder `output`, or to `output` itself if it names an image.

    Raises:
        ValueError: one file for several drawings.
    """
    target = Path(output)
    if target.suffix.lower() in EXTENSIONS and not target.is_dir():
        if len(images) > 1:
            raise ValueError(f"--output {output} is one file for {len(images)} images; give a folder")
        return [target]
    paths: dict[Path, None] = {}  # in order, and quick to look up for a folder of thousands
    for image in images:
        name = Path(urlparse(image).path if is_remote(image) else image)
        suffix = name.suffix if name.suffix.lower() in EXTENSIONS else ".png"
        number, path = 1, target / f"{name.stem}{suffix}"
        while path in paths:
            number, path = number + 1, target / f"{name.stem}_{number + 1}{suffix}"
        paths[path] = None
    return list(paths)


def check_nothing_is_overwritten(images: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise ValueError where a drawing would take the place of one of the images."""
    sources = {Path(image).resolve() for image in images if not is_remote(image)}
    for path in paths:
        if path.resolve() in sources:
            raise ValueError(f"the drawing {path} would overwrite the image itself; give another --output")


def build_config(args: argparse.Namespace) -> CfgNode:
    """The config asked for: of a file, or of the checkpoint that was typed, with all overrides.

    Raises:
        ValueError, OSError: a file, key or value is wrong, or there are no trained weights.
    """
    cfg = load_config(args.config_file or DEFAULT_CONFIG, args.opts)
    require_trained_weights(cfg)
    if not args.config_file:
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
        if checkpoint.config:
            cfg = stored_config(checkpoint)
            cfg.merge_from_list(args.opts)
    test = cfg.MODEL.MASK_FORMER.TEST
    if args.task:
        test[f"{args.task.upper()}_ON"] = True
    if args.confidence_threshold is not None:
        test.OBJECT_MASK_THRESHOLD = args.confidence_threshold
    return cfg


def how_to_get_weights(config_file: str) -> str:
    """The line to type, with the published checkpoint of that config where there is one."""
    address = zoo.published_weights(config_file)
    line = f"Add to the command:\n  --opts {WEIGHTS} {address or 'path/to/model_final.pth'}"
    return f"{line}\n{zoo.license_notice()}" if address else line


def draw_one(predictor: Predictor, image: str, path: Path, task: str | None) -> str:
    """Segment and draw one image; what to tell about it.

    Raises:
        ValueError, OSError: it cannot be read, or the drawing not be written.
    """
    result = predictor(image)
    task = task or result.tasks[0]
    write_image(path, result.draw(task, scale=legible_scale(result.image)))
    found = f"{result.count(task)} {FOUND[task]}"
    return f"{image}: {result.why_empty(task) or found} -> {path}"


def draw_all(predictor: Predictor, images: Sequence[str], paths: Sequence[Path], task: str | None) -> int:
    """Draw every image that can be; how many could not."""
    failed = 0
    progress = tqdm(list(zip(images, paths, strict=True)), unit="image", disable=len(images) == 1)
    for image, path in progress:
        try:
            progress.write(draw_one(predictor, image, path, task))
        except (ValueError, OSError, RuntimeError) as error:
            failed += 1
            reason = str(error).removeprefix(f"{image}: ")
            progress.write(f"error: {image}: {reason}", file=sys.stderr)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all drawn; 1: some or all could not be; 2: wrong flags."""
    args = parse_arguments(argv)
    setup_logger()
    try:
        cfg = build_config(args)
        images = find_images(args.input)
        paths = output_paths(images, args.output)
        check_nothing_is_overwritten(images, paths)
        threshold = SCORE_THRESHOLD if args.confidence_threshold is None else args.confidence_threshold
        predictor = Predictor(cfg, score_threshold=threshold, precision=args.precision)
    except UntrainedModelError as error:
        print(f"error: {error}.\n{how_to_get_weights(args.config_file or DEFAULT_CONFIG)}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = draw_all(predictor, images, paths, args.task)
    if failed:
        print(f"error: {failed} of {len(images)} images could not be drawn", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
