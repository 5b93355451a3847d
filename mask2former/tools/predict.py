"""The command `mask2former predict`: segment images with a trained model and draw the results.

Each image's overlay gets the image's name in the output folder. An image that cannot be read is reported, the
others are drawn, and the exit code is 1.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from fvcore.common.config import CfgNode
from tqdm import tqdm

from mask2former.config import load_config, with_tasks, with_values
from mask2former.drawing.overlay import legible_scale
from mask2former.engine.logger import setup_logger
from mask2former.engine.setup.known_classes import with_known_classes
from mask2former.engine.setup.trained_model import (
    UntrainedModelError,
    require_trained_weights,
    stored_config,
    zoo_model,
)
from mask2former.export.exported_model import read_trained
from mask2former.options import COUNTED, SCORE_THRESHOLD
from mask2former.predictor import Predictor
from mask2former.result import Result
from mask2former.tools.arguments.predict import DEFAULT_CONFIG, WEIGHTS, parse_arguments
from mask2former.tools.prediction.films import (
    drawn_task,
    find_films,
    predict_films,
    require_objects,
)
from mask2former.tools.prediction.inputs import find_images, output_paths
from mask2former.tracking.formats import CocoFile
from mask2former.utils.image_io import Array, write_image
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.messages import legible, reason
from mask2former.utils.output import print_error, tolerant_output
from mask2former.weights.load import Checkpoint
from mask2former.weights.model_zoo import license_notice, model_of_config


def choose_model(args: argparse.Namespace) -> tuple[CfgNode, Checkpoint | None]:
    """Return the config that the flags ask for, and its checkpoint if that had to be read for it.

    Raises:
        ValueError, OSError: a file, key or value is wrong, or there are no trained weights.
    """
    checkpoint = None
    weights = dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get(WEIGHTS)
    if args.model:
        cfg, checkpoint = zoo_model(args.model, args.opts)
    elif args.config_file or not weights:
        cfg = load_config(args.config_file or DEFAULT_CONFIG, args.opts)
    else:
        require_trained_weights(weights)
        checkpoint = with_known_classes(read_trained(weights))
        stored = checkpoint.config is not None
        cfg = stored_config(checkpoint, args.opts) if stored else load_config(DEFAULT_CONFIG, args.opts)
    drawn = args.task or next(
        (task for task in COUNTED if cfg.MODEL.MASK_FORMER.TEST[f"{task.upper()}_ON"]), None
    )
    if drawn:  # the others would be computed in vain
        cfg = with_tasks(cfg, [drawn], "--task")
    if args.confidence_threshold is not None:
        threshold = {"MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": args.confidence_threshold}
        cfg = with_values(cfg, threshold, "--confidence-threshold")
    if args.max_megapixels is not None:
        cfg = with_values(cfg, {"INPUT.MAX_MEGAPIXELS": args.max_megapixels}, "--max-megapixels")
    return cfg, checkpoint


def how_to_get_weights(config_file: str) -> str:
    """Return what to add to the command, with the checkpoint published for that config if there is one."""
    model = model_of_config(config_file)
    line = f"Add to the command:\n  --opts {WEIGHTS} {model.weights if model else 'path/to/model_final.pth'}"
    if model is None:
        return line
    return f"{line}\nor replace --config-file by --model {model.name}.\n{license_notice(model.weights)}"


def draw(result: Result, task: str, legend: bool = False) -> tuple[Array, str]:
    """Return the overlay of a task, and what was found or why nothing was."""
    found = result.why_empty(task) or f"{result.count(task)} {COUNTED[task]}"
    return result.draw(task, scale=legible_scale(result.image), legend=legend), found


def predict_all(
    predictor: Predictor, images: Sequence[str], paths: Sequence[Path], args: argparse.Namespace
) -> int:
    """Segment all images and write their overlays, report each result or error, and count the errors."""
    with CocoFile(args.coco, drawn_task(args, predictor), rle=False) if args.coco else nullcontext() as coco:
        return _predict_all(predictor, images, paths, args, coco)


def _predict_all(
    predictor: Predictor,
    images: Sequence[str],
    paths: Sequence[Path],
    args: argparse.Namespace,
    coco: CocoFile | None,
) -> int:
    failed = 0
    progress = tqdm(list(zip(images, paths, strict=True)), unit="image", disable=len(images) == 1)
    for image, path in progress:
        try:
            result = predictor(image)
            if coco:
                coco.add(image, result)
            overlay, found = draw(result, drawn_task(args, predictor), args.legend)
            del result  # of a large image, it would take memory while the overlay is compressed
            write_image(path, overlay)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed += 1
            why = reason(error, image)
            if is_out_of_memory(error):
                why = "not enough memory; try a smaller INPUT.MIN_SIZE_TEST"
            progress.write(f"error: {legible(image)}: {why}", file=sys.stderr)
        else:
            progress.write(f"{legible(image)}: {found} -> {legible(path)}")
    return failed


def open_predictor(args: argparse.Namespace) -> Predictor:
    """Return the predictor that the flags ask for; raise ValueError or OSError as `choose_model`."""
    cfg, checkpoint = choose_model(args)
    return Predictor(
        cfg,
        checkpoint=checkpoint,
        score_threshold=SCORE_THRESHOLD if args.confidence_threshold is None else args.confidence_threshold,
        duplicate_iou=args.duplicate_iou,
        tile=args.tile,
        tile_overlap=args.tile_overlap,
        precision=args.precision,
        calibrate=args.calibrate,
    )


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all images were drawn, 1 if some or all were not, 2 for wrong flags."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Draw all inputs; return 0, or 1 if some or all could not be drawn."""
    setup_logger()
    try:
        images = find_images(args.input)
        films = find_films(args, images)
        paths = [] if films else output_paths(images, args.output)
        predictor = open_predictor(args)
        require_objects(args, predictor)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            print_error("not enough memory for a model of this config")
            return 1
        if isinstance(error, RuntimeError):
            raise
        untrained = isinstance(error, UntrainedModelError)
        print_error(error)
        if untrained:
            print(how_to_get_weights(args.config_file or DEFAULT_CONFIG), file=sys.stderr)
        return 1
    try:
        if films:
            return predict_films(predictor, films, args)
        failed = predict_all(predictor, images, paths, args)
    except OSError as error:  # of the files of all images or films
        print_error(error)
        return 1
    if failed:
        print_error(f"{failed} of {len(images)} images could not be drawn")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
