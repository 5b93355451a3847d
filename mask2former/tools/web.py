"""The command `mask2former web`: a page to drop images on, which shows what a trained model finds."""

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from socket import socket

from mask2former.config import with_values
from mask2former.data.datasets.files import datasets_root
from mask2former.data.datasets.shapes import CATEGORIES
from mask2former.engine.logger import setup_logger
from mask2former.engine.setup.known_classes import with_known_classes
from mask2former.engine.setup.trained_model import stored_config, zoo_model
from mask2former.export.exported_model import read_trained
from mask2former.predictor import Predictor
from mask2former.tools.arguments.web import SMALL_MODEL, parse_arguments
from mask2former.utils.memory import is_out_of_memory
from mask2former.utils.output import print_error, tolerant_output
from mask2former.utils.storage import is_remote
from mask2former.web.server import listen, page_server
from mask2former.web.visits import Visits

EXAMPLES = 6


def open_model(
    name: str | None, max_megapixels: float, precision: str, calibrate: str | None = None
) -> Predictor:
    """Return a predictor with a checkpoint, by path or URL, or with a published model.

    `precision` and `calibrate` are those of `Predictor`.

    Raises:
        ValueError, OSError: there is no such model, or it cannot be read.
    """
    if name is None and not Path(SMALL_MODEL).exists():
        raise ValueError(
            f"no model is given, and `make run` has not left {SMALL_MODEL} here; type mask2former web "
            "model_final.pth for a checkpoint, or mask2former web coco-panoptic-r50 for a published model"
        )
    name = name or SMALL_MODEL
    if Path(name).suffix or is_remote(name) or Path(name).exists():
        checkpoint = with_known_classes(read_trained(name))
        cfg = stored_config(checkpoint)
    else:
        cfg, checkpoint = zoo_model(name)
    # An average over views has no prediction of its own that thresholds could be applied to
    values = {"INPUT.MAX_MEGAPIXELS": max_megapixels, "TEST.AUG.ENABLED": False}
    cfg = with_values(cfg, values, "mask2former web")
    return Predictor(cfg, checkpoint=checkpoint, precision=precision, calibrate=calibrate)


def find_examples(predictor: Predictor) -> list[Path]:
    """Return some images of the drawn dataset, if it is there and the model knows its classes."""
    if list(predictor.class_names) != [category["name"] for category in CATEGORIES]:
        return []
    return sorted((Path(datasets_root()) / "shapes/val").glob("*.jpg"))[:EXAMPLES]


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C; return 0, or 1 if the page cannot be served, 2 for wrong flags."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; return 0, or 1 if it cannot be served."""
    setup_logger()
    if find_spec("gradio") is None:
        print_error("the page needs Gradio; type pip install 'mask2former[web]'")
        return 1
    try:
        listener = listen(args.host, args.port)
    except OSError as error:
        where = f"{args.host}, port {args.port}"
        print_error(f"cannot listen on {where} ({error.strerror}); try another --port or --host")
        return 1
    with listener:
        try:
            predictor = open_model(args.model, args.max_megapixels, args.precision, args.calibrate)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            print_error("not enough memory for this model" if is_out_of_memory(error) else error)
            return 1
        with suppress(KeyboardInterrupt):
            serve(predictor, args, listener)
    return 0


def serve(predictor: Predictor, args: argparse.Namespace, listener: socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM, and delete its temporary files."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by itself it would end the process at once
    visits = Visits(predictor, find_examples(predictor))
    with page_server(visits, args.model or SMALL_MODEL, megabytes=args.max_megabytes) as server:
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"open http://{address}:{port} (Ctrl-C ends)", flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
