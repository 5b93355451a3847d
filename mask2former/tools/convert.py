"""The command `mask2former convert`: between a checkpoint and a folder in the form of transformers.

Weights stay as they are, bit for bit, unless one task is taken out of a model for several. Before anything is
written, their names and shapes are compared with those of the model that the config describes.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mask2former.config import CfgNode, config_from_text, load_config, with_values
from mask2former.engine.build import construct_model
from mask2former.engine.logger import setup_logger
from mask2former.engine.setup.dataset_facts import checkpoint_metadata, dataset_metadata, with_dataset_facts
from mask2former.engine.setup.known_classes import with_known_classes
from mask2former.modeling.backbone.swin import relative_position_index
from mask2former.tools.arguments.convert import SUFFIX, parse_arguments
from mask2former.utils.atomic_files import atomic_write
from mask2former.utils.output import print_error, tolerant_output
from mask2former.weights.contents import Checkpoint, WeightsError
from mask2former.weights.hub.config import EXTRA, extra, hub_config, model_type
from mask2former.weights.hub.fields import MODELS
from mask2former.weights.hub.folder import FILES, HUB, saved_files, write_folder
from mask2former.weights.hub.names import NAMES
from mask2former.weights.hub.processor import hub_processor
from mask2former.weights.hub.translate import COMPUTED, COUNTER, hub_names, to_hub
from mask2former.weights.one_task import require_one_task
from mask2former.weights.read import find_file, read_checkpoint
from mask2former.weights.rename import translate


def check_target(source: Path, target: Path, overwrite: bool, task: str | None = None) -> None:
    """Check that TARGET is of the other kind than SOURCE, and may be written.

    With `task`, both may be checkpoints.

    Raises:
        ValueError: it is of the same kind, or exists and `overwrite` is False.
    """
    to_checkpoint = target.suffix == SUFFIX
    if source.is_dir() and not to_checkpoint:
        raise ValueError(f"{source} is a folder of transformers, so TARGET must end with {SUFFIX}: {target}")
    if not source.is_dir() and to_checkpoint and task is None:
        raise ValueError(f"{source} is a checkpoint, so TARGET must be a folder, not {target}")
    if target.is_dir() if to_checkpoint else target.is_file():
        kind = "folder, where a checkpoint" if to_checkpoint else "file, where a folder"
        raise ValueError(f"{target} is a {kind} would be written; type another TARGET")
    files = [target] if to_checkpoint else [target / name for name in FILES]
    taken = [file for file in files if file.exists()]
    if taken and not overwrite:
        raise ValueError(f"{taken[0]} exists; --overwrite replaces it, or type another TARGET")


def read_source(source: str, config_file: str | None, opts: Sequence[str]) -> tuple[Checkpoint, CfgNode]:
    """Return the checkpoint, with the class names of its dataset if it has none, and its config.

    Raises:
        WeightsError: SOURCE cannot be read, or there is no config.
        ValueError: a key or value is wrong.
    """
    checkpoint = with_known_classes(read_checkpoint(source))
    if config_file is not None:
        cfg = with_dataset_facts(load_config(config_file, opts))
    elif checkpoint.config is not None:
        cfg = config_from_text(checkpoint.config, checkpoint.file, opts)
    else:
        raise WeightsError(source, "holds weights but no config; add --config-file FILE")
    things = cfg.MODEL.MASK_FORMER.THING_IDS
    metadata = checkpoint.metadata or checkpoint_metadata(dataset_metadata(cfg), things)
    return replace(checkpoint, metadata={**metadata, "thing_ids": list(things)}), cfg


def fitting_tensors(checkpoint: Checkpoint, cfg: CfgNode) -> dict[str, Tensor]:
    """Return the tensors of the model of a config, under our names.

    Index buffers that the file lacks are computed, and counters of norms that the model has not are left out.

    Raises:
        WeightsError: a tensor is missing, unexpected, or of another shape; the message has SOURCE's name.
    """
    with torch.device("meta"):
        model = construct_model(with_values(cfg, {"MODEL.DEVICE": "meta"}, "convert"))
    expected, (_, given) = model.state_dict(), translate(checkpoint.model)
    tensors: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        if name in given:
            tensors[name] = given[name]
        elif COMPUTED.search(name):
            tensors[name] = relative_position_index(cfg.MODEL.SWIN.WINDOW_SIZE)
        elif name.endswith(COUNTER):
            tensors[name] = torch.zeros((), dtype=tensor.dtype)
    shown = partial(_name_in_source, checkpoint, model_type(cfg))
    misfits = [name for name, tensor in tensors.items() if tensor.shape != expected[name].shape]
    problems = [
        *(f"lacks {shown(name)}" for name in expected if name not in tensors),
        *(f"holds {shown(n)}, which its config has not" for n in given if not _is_expected(n, expected)),
        *(f"{shown(n)} is {[*tensors[n].shape]}; by its config {[*expected[n].shape]}" for n in misfits),
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise WeightsError(checkpoint.file, problems[0] + more)
    return tensors


def _is_expected(name: str, expected: Collection[str]) -> bool:
    return name in expected or name.endswith(COUNTER)


def _name_in_source(checkpoint: Checkpoint, model: str, name: str) -> str:
    if not Path(checkpoint.file).is_dir():
        return name
    return (hub_names(name, NAMES[model]) or [name])[0]


def write_checkpoint(
    target: Path, checkpoint: Checkpoint, cfg: CfgNode, tensors: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint of ours, with the files of the folder that it comes from, if it does."""
    content = {"model": dict(tensors), "config": cfg.dump(), "metadata": checkpoint.metadata}
    content |= {key: checkpoint.extra[key] for key in (HUB,) if key in checkpoint.extra}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        torch.save(content, file)


def write_hub(target: Path, checkpoint: Checkpoint, cfg: CfgNode, tensors: Mapping[str, Tensor]) -> None:
    """Write a folder in transformers' form.

    Raises:
        ValueError: transformers has no model like this; the message names the key.
    """
    saved_config, saved_processor = saved_files(checkpoint)
    metadata = checkpoint.metadata or {}
    try:
        content = hub_config(cfg, metadata, tensors, saved_config)
    except ValueError as error:
        raise WeightsError(checkpoint.file, str(error)) from error
    model = model_type(cfg)
    processor = hub_processor(cfg, MODELS[model].processor, saved_processor)
    if not saved_config:
        content["dtype"] = str(next(t.dtype for t in tensors.values() if t.is_floating_point()))[6:]
    content[EXTRA] = extra(cfg, metadata, content, processor)
    write_folder(target, to_hub(tensors, NAMES[model]), content, processor)


@tolerant_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if TARGET was written, else 1."""
    return run(parse_arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Convert SOURCE; return 0 if TARGET was written, else 1."""
    setup_logger()
    target = Path(args.target).expanduser()
    try:
        source = find_file(args.source)
        check_target(source, target, args.overwrite, args.task)
        checkpoint, cfg = read_source(args.source, args.config_file, args.opts)
        cfg, checkpoint = require_one_task(cfg, checkpoint, args.task)
        tensors = fitting_tensors(checkpoint, cfg)
        write = write_checkpoint if target.suffix == SUFFIX else write_hub
        write(target, checkpoint, cfg, tensors)
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    print(f"{args.source} -> {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
