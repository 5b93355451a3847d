"""A folder in transformers' form: config.json, preprocessor_config.json, and weights in a file or in shards.

Weights are safetensors or, in folders of earlier years, pickles, which are read without running code.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mask2former.utils.atomic_files import atomic_path, atomic_write
from mask2former.utils.messages import brief
from mask2former.utils.storage import is_file
from mask2former.weights.contents import Checkpoint, WeightsError, read_file
from mask2former.weights.hub.config import EXTRA, extra_of, labels, model_values
from mask2former.weights.hub.names import NAMES
from mask2former.weights.hub.processor import input_values
from mask2former.weights.hub.tables import Names
from mask2former.weights.hub.translate import to_ours

logger = logging.getLogger(__name__)

HUB = "hub"  # what a checkpoint keeps of the folder that it comes from: the two JSON files
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # after the name of the file that was split
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}{INDEX}", PICKLE, f"{PICKLE}{INDEX}")  # the first that exists is read
FILES = (CONFIG, PROCESSOR, SAFETENSORS)  # that are written
MAX_JSON = 10_000_000  # bytes


def is_hub_folder(path: Path) -> bool:
    """Return True for a folder that has transformers' config.json."""
    return (path / CONFIG).is_file()


def read_folder(folder: Path) -> Checkpoint:
    """Read a folder: weights under our names, and as `config` the keys that its files give.

    `metadata` has what a checkpoint of ours has, or only the class names where the folder comes from
    elsewhere. `extra[HUB]` holds the two JSON files.

    Raises:
        WeightsError: a file is missing, damaged or of another model, or a part of a tensor is missing.
    """
    config = _read_json(folder / CONFIG)
    has_processor = (folder / PROCESSOR).is_file()
    processor = _read_json(folder / PROCESSOR) if has_processor else {}
    if not has_processor:
        logger.warning(
            "%s: has no %s; images are prepared as transformers does by default", folder, PROCESSOR
        )
    try:
        values = model_values(config)
        names = labels(config)
        own = extra_of(config, names)
    except ValueError as error:
        raise WeightsError(folder / CONFIG, str(error)) from error
    try:
        values |= input_values(processor)
    except ValueError as error:
        raise WeightsError(folder / PROCESSOR, str(error)) from error
    if own is None and config.get(EXTRA) is not None:
        message = "%s: its key %s is of other classes than id2label, and is ignored"
        logger.warning(message, folder / CONFIG, EXTRA)
    own_values, metadata = own or ({}, {"stuff_classes": names})
    return Checkpoint(
        file=str(folder),
        model=_read_weights(folder, NAMES[config["model_type"]]),
        config=json.dumps(values | own_values),
        metadata=metadata,
        extra={HUB: {CONFIG: config, PROCESSOR: processor}},
    )


def saved_files(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and preprocessor_config.json of the folder that it comes from; empty without one."""
    saved = checkpoint.extra.get(HUB)
    files = [saved.get(name) if isinstance(saved, dict) else None for name in (CONFIG, PROCESSOR)]
    config, processor = (file if isinstance(file, dict) else {} for file in files)
    return config, processor


def _read_json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON:
            raise WeightsError(file, f"is larger than {MAX_JSON} bytes, so not a file of transformers")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(file, "no such file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise WeightsError(file, f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise WeightsError(file, f"holds a {type(content).__name__}, not keys with values")
    return content


def _read_weights(folder: Path, names: Names) -> dict[str, Tensor]:
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise WeightsError(folder / SAFETENSORS, f"no such file, nor {', '.join(WEIGHTS[1:])}")
    tensors = _read_shards(file) if file.name.endswith(INDEX) else read_file(file, str(file)).model
    try:
        return to_ours(tensors, names)
    except ValueError as error:
        raise WeightsError(file, str(error)) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in places.values()
    ):
        raise WeightsError(index, "weight_map must name a file of this folder for each tensor")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = index.with_name(name)
        if not is_file(shard):
            raise WeightsError(shard, f"no such file, which {index.name} names")
        tensors |= read_file(shard, str(shard)).model
    if missing := [name for name in places if name not in tensors]:
        raise WeightsError(index, f"names {brief(missing[0])}, which {places[missing[0]]} does not hold")
    return tensors


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], processor: Mapping[str, Any]
) -> None:
    """Write tensors under transformers' names and the two JSON files; the files that exist are replaced.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / SAFETENSORS) as path:
        try:
            save_file(dict(tensors), path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder / SAFETENSORS}: cannot be written ({error})") from error
    for name, content in ((PROCESSOR, processor), (CONFIG, config)):  # the last marks the folder as complete
        with atomic_write(folder / name) as file:
            file.write(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
