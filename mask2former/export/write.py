"""A trained model written as a file of another runtime, and compared with itself before it gets its name."""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fvcore.common.config import CfgNode

from mask2former.config import with_values
from mask2former.engine.setup.dataset_facts import checkpoint_metadata, dataset_metadata, with_dataset_facts
from mask2former.engine.setup.trained_model import trained_model
from mask2former.export.check import Difference, measure, require_small
from mask2former.export.formats import FORMATS
from mask2former.export.graph import Graph, HalfGraph
from mask2former.export.metadata import build_metadata
from mask2former.export.runtimes import open_exported
from mask2former.export.writers import WRITERS, require_packages
from mask2former.modeling.mask_former import MaskFormer
from mask2former.utils.atomic_files import UNFINISHED, write_errors_named
from mask2former.utils.messages import InputError
from mask2former.weights.read import Checkpoint

logger = logging.getLogger(__name__)

EXPORTERS = ("torch.onnx", "onnxscript", "onnx_ir")  # names of their loggers
LAYER = "MODEL.MASK_FORMER.TEST.LAYER"


def export_model(
    cfg: CfgNode,
    model: MaskFormer,
    metadata: Mapping[str, Any],
    path: Path,
    kind: str,
    *,
    half: bool = False,
    check: bool = True,
) -> list[Difference]:
    """Write a model on the CPU to `path`, and return how far the file's logits are from the model's.

    The files of OpenVINO are `path`, which ends in .xml, and the same with .bin. Nothing is left behind if
    writing or the check fails.

    Args:
        metadata: of the classes, as checkpoints hold it.
        kind: one of FORMATS.
        half: store weights in 16 bits.
        check: compare the file with the model; otherwise the result is empty.

    Raises:
        ExportError: logits differ by more than is allowed.
        InputError: the model predicts no masks, or not with its last layer.
        MissingRuntimeError: a package is not installed.
        OSError: the file cannot be written.
    """
    require_packages(kind)
    _require_last_layer(cfg)
    graph = Graph(model.eval())
    text = build_metadata(with_dataset_facts(cfg), metadata, half=half).to_json()
    start = time.monotonic()
    with _finished(path, FORMATS[kind].suffixes) as unfinished:
        with _without_noise():
            written = HalfGraph(graph) if half else graph
            WRITERS[kind](written, graph.divisor, unfinished, text)
        logger.info("%s: written in %.0f s", path, time.monotonic() - start)
        differences = measure(graph, open_exported(unfinished, exact=True)) if check else []
        require_small(differences, path.name)
    return differences


def model_and_metadata(cfg: CfgNode, checkpoint: Checkpoint) -> tuple[MaskFormer, Mapping[str, Any]]:
    """Return the arguments of `export_model`: a checkpoint's model on the CPU, and its classes' metadata.

    Raises:
        WeightsError, UntrainedModelError: as `trained_model`.
    """
    model = trained_model(with_values(cfg, {"MODEL.DEVICE": "cpu"}, "export"), checkpoint)
    if checkpoint.metadata is not None:
        return model, checkpoint.metadata
    things = with_dataset_facts(cfg).MODEL.MASK_FORMER.THING_IDS
    return model, checkpoint_metadata(dataset_metadata(cfg), things)


def _require_last_layer(cfg: CfgNode) -> None:
    if (layer := cfg.MODEL.MASK_FORMER.TEST.LAYER) != -1:
        raise InputError(f"{LAYER} is {layer}, but exported files predict with the last layer; set it to -1")


@contextmanager
def _finished(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield a path in a new folder; after the block, its files with these suffixes move beside `path`.

    The folder is deleted in any case. The first suffix, that of the file which is opened, moves last.
    """
    with (
        write_errors_named(path),
        TemporaryDirectory(prefix=f"{UNFINISHED}-", dir=path.parent) as folder,
    ):
        unfinished = Path(folder, path.name)
        yield unfinished
        for suffix in reversed(suffixes):
            os.replace(unfinished.with_suffix(suffix), path.with_suffix(suffix))


@contextmanager
def _without_noise() -> Iterator[None]:
    """Keep what the exporters say about their own code from the terminal."""
    levels = {name: logging.getLogger(name).level for name in EXPORTERS}
    for name in EXPORTERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
