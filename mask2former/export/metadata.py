"""What an exported file holds beside its graph: one JSON text under KEY.

This project reads the config and the metadata of the classes from it, which are those of a checkpoint. The
other values repeat what other programs need to prepare images and to read the predictions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_origin

import numpy as np
from fvcore.common.config import CfgNode

from mask2former.engine.setup.class_names import class_names_and_colors
from mask2former.modeling.postprocessing.inference import build_inference_options
from mask2former.utils.messages import brief
from mask2former.weights.contents import WeightsError

KEY = "mask2former"  # in metadata_props of ONNX, rt_info of OpenVINO, extra_files of torch.export
VERSION = 1


@dataclass(frozen=True)
class ExportMetadata:
    """The contents of the JSON text.

    Attributes:
        config, metadata: the YAML text and the class metadata, as checkpoints of this project hold them.
        image_format: the order of the channels, "RGB" or "BGR".
        image_mean, image_std: per channel, in 0..255.
        size_divisibility: the graph pads `images` at the right and bottom with zeros to multiples of it.
        min_size, max_size: an image is resized until its short side is min_size (0: not at all), or its long
            side would exceed max_size.
        tasks: those that the model was trained for, among "semantic", "instance" and "panoptic".
        half: the weights have 16 bits.
    """

    config: str
    metadata: dict[str, Any]
    image_format: str
    image_mean: list[float]
    image_std: list[float]
    size_divisibility: int
    min_size: int
    max_size: int
    class_names: list[str]
    thing_ids: list[int]
    object_mask_threshold: float
    overlap_threshold: float
    tasks: list[str]
    half: bool = False
    version: int = VERSION

    def to_json(self) -> str:
        """Return the text that `parse_metadata` reads."""
        return json.dumps(asdict(self), default=_plain)


def build_metadata(cfg: CfgNode, metadata: Mapping[str, Any], *, half: bool = False) -> ExportMetadata:
    """Return the metadata of a model, given its config and the metadata of its checkpoint's classes."""
    options = build_inference_options(cfg)
    names, _ = class_names_and_colors(metadata, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    return ExportMetadata(
        config=cfg.dump(),
        metadata=dict(metadata),
        image_format=cfg.INPUT.FORMAT,
        image_mean=list(cfg.MODEL.PIXEL_MEAN),
        image_std=list(cfg.MODEL.PIXEL_STD),
        size_divisibility=max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 1),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        class_names=names,
        thing_ids=list(options.thing_ids),
        object_mask_threshold=options.object_mask_threshold,
        overlap_threshold=options.overlap_threshold,
        tasks=list(options.tasks),
        half=half,
    )


def parse_metadata(text: str | None, file: str) -> ExportMetadata:
    """Return the metadata that a file holds under KEY; `text` is None where it holds none.

    Values that a later minor version adds are ignored.

    Raises:
        WeightsError: `mask2former export` did not write the file, or a later version of it did.
    """
    if text is None:
        raise WeightsError(file, f"holds no metadata '{KEY}'; `mask2former export` writes files that do")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(file, f"its metadata '{KEY}' is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(file, f"its metadata '{KEY}' is {brief(values)}, not a JSON object")
    if values.get("version") != VERSION:
        found = brief(values.get("version"))
        raise WeightsError(file, f"its metadata '{KEY}' has version {found}, not {VERSION}; export it again")
    known = {field.name: field.type for field in fields(ExportMetadata)}
    for name, kind in known.items():
        if name not in values or not _is_of(values[name], kind):
            raise WeightsError(
                file, f"its metadata '{KEY}' has {name}: {brief(values.get(name))}, not of type {_name(kind)}"
            )
    return ExportMetadata(**{name: values[name] for name in known})


def _is_of(value: Any, kind: Any) -> bool:
    """Return True if a value from JSON fits the annotation of a field."""
    container = get_origin(kind)
    if container is list:
        return isinstance(value, list) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if container is not None:
        return isinstance(value, container)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    return str(kind) if get_origin(kind) else kind.__name__


def _plain(value: Any) -> Any:
    """Return an array or number of numpy, which checkpoints may hold, as JSON can write it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{brief(value)} cannot be written as JSON")
