"""The command `mask2former export`: a trained model as a file of ONNX, OpenVINO or torch.export.

The file is compared with the model before it gets its name. `Predictor`, `predict` and `evaluate` take it in
the place of a checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from fvcore.common.config import CfgNode

from mask2former.config import load_config
from mask2former.engine.logger import setup_logger
from mask2former.engine.setup.known_classes import with_known_classes
from mask2former.engine.setup.precision import calibration_images
from mask2former.engine.setup.threads import share_processor
from mask2former.engine.setup.trained_model import require_checkpoint, stored_config, zoo_model
from mask2former.export.check import report
from mask2former.export.formats import FORMATS
from mask2former.export.int8 import export_int8
from mask2former.export.int8 import report as int8_report
from mask2former.export.write import export_model, model_and_metadata
from mask2former.export.writers import require_packages
from mask2former.tools.arguments.export import parse_arguments
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.output import print_error, tolerant_output
from mask2former.weights.one_task import require_one_task
from mask2former.weights.read import Checkpoint, read_checkpoint

FOLDER_NAME = "model"  # of the file of a folder of transformers


def load_model(args: argparse.Namespace) -> tuple[CfgNode, Checkpoint]:
    """Return the config and the checkpoint that the flags name.

    Raises:
        ValueError, OSError: a file, key or value is wrong.
    """
    if args.model:
        return zoo_model(args.model, args.opts)
    checkpoint = with_known_classes(read_checkpoint(require_checkpoint(args.checkpoint)))
    if args.config_file:
        return load_config(args.config_file, ["MODEL.WEIGHTS", args.checkpoint, *args.opts]), checkpoint
    return stored_config(checkpoint, args.opts), checkpoint


def output_path(args: argparse.Namespace) -> Path:
    """Return the file to write: by default beside the checkpoint, or in it if it is a folder.

    Raises:
        ValueError: the suffix is not that of the format, or the file exists and may not be replaced.
    """
    suffix = FORMATS[args.format].suffixes[0]
    path: Path = args.output or _default_output(args.model, args.checkpoint, suffix)
    if path.suffix != suffix:
        raise ValueError(f"--output {path} must end with {suffix} for --format {args.format}")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}")
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists; --overwrite replaces it, or type another --output")
    return path


def _default_output(model: str | None, checkpoint: str, suffix: str) -> Path:
    if model:
        return Path(model + suffix)
    if "://" in checkpoint:
        return Path(PurePath(checkpoint).name).with_suffix(suffix)
    path = Path(checkpoint)
    return path / (FOLDER_NAME + suffix) if path.is_dir() else path.with_suffix(suffix)


def export(args: argparse.Namespace, path: Path) -> str:
    """Write the file that the flags describe, and return how far it is from the model.

    Raises as `require_one_task`, `model_and_metadata`, `export_model` and `export_int8`.
    """
    images = calibration_images(args.calibrate) if args.int8 else ()
    cfg, checkpoint = require_one_task(*load_model(args), args.task)
    model, metadata = model_and_metadata(cfg, checkpoint)
    suffixes = FORMATS[args.format].suffixes
    if images:
        table = int8_report(export_int8(cfg, model, metadata, path, args.format, images))
        return f"{table}\n{report(path, suffixes, ())}"
    differences = export_model(cfg, model, metadata, path, args.format, half=args.half, check=args.check)
    return report(path, suffixes, differences)


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if the model could not be exported."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Export the model that the flags name; return 0, or 1 if it could not be exported."""
    setup_logger()
    share_processor()
    try:
        require_packages(args.format)
        path = output_path(args)
        found = export(args, path)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print_error(error)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print_error("not enough memory for a model of this config")
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
