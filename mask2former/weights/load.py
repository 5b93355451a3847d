"""Loading of a file's weights into a model, with a report of each tensor.

Names are translated (`rename.py`) and shapes compared. Differences by design are adapted (`adapt.py`): a
class head for another number of classes keeps its initial values, queries are cut or repeated, positions are
interpolated. Any other misfit is an error, and the model stays unchanged.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from mask2former.utils.comm import all_gather_object
from mask2former.utils.messages import Block, legible
from mask2former.utils.sharding import local_part
from mask2former.weights.adapt import adapt
from mask2former.weights.read import Checkpoint, WeightsError, read_checkpoint
from mask2former.weights.rename import translate

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Misfit",
    "WeightsError",
    "check_values",
    "load_weights",
    "read_checkpoint",
    "restore_weights",
]

logger = logging.getLogger(__name__)

# Computed from the config; values in a file are ignored
COMPUTED = re.compile(r"(^|\.)(relative_position_index|empty_weight|pixel_mean|pixel_std)$")
# Counters of batch norms, which files of frozen norms lack and nothing reads; what helps in training alone
OPTIONAL = re.compile(r"\.(num_batches_tracked|pilot_embed\.weight)$")
# Embeddings of tasks: zero in a model that begins with weights for one task, which need no others
OF_TASKS = re.compile(r"\.predictor\.task_(feat|embed)\.weight$")
# The norm after the last block of a vision transformer, which ViT-Adapter does without
UNUSED = re.compile(r"^backbone\.vit\.norm\.(weight|bias)$")
VARIANCE = re.compile(r"\.running_var$")
HEAD = "sem_seg_head."
ROWS_IN_ERROR = 30


class Misfit(NamedTuple):
    """A name with its shape in the file and in the model, None if it is not there."""

    problem: str  # "missing", "unexpected" or "wrong shape"
    name: str
    in_file: tuple[int, ...] | None
    in_model: tuple[int, ...] | None


@dataclass
class LoadReport:
    """Result of loading, by the names of the model ("unexpected": by translated names of the file).

    `adapted` maps a name to what was done; `untrained` are names that a file of this kind may lack, as
    the head in a file of ImageNet weights; `share_loaded` is the share of the model's parameters that come
    from the file, in [0, 1].
    """

    file: str
    kind: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)
    problems: list[Misfit] = field(default_factory=list)
    share_loaded: float = 0.0
    has_trained_head: bool = False

    def table(self, rows: int | None = None) -> str:
        """Return a table of the problems, of at most `rows` rows."""
        heads = ("problem", "name", "in the file", "in the model")
        problems = [misfit._replace(name=legible(misfit.name, 100)) for misfit in self.problems[:rows]]
        text = tabulate(problems, heads, missingval="-")
        left_out = len(self.problems[rows:]) if rows is not None else 0
        return text + (f"\n... and {left_out} more" if left_out else "")

    def summary(self) -> str:
        """Return one line, as `x.pth (backbone): loaded 99.9 % of parameters; ...`."""
        percent = int(self.share_loaded * 1000) / 10  # rounded down, so that 100 % means all
        parts = [f"loaded {percent:g} % of parameters", *dict.fromkeys(self.adapted.values())]
        if self.untrained:
            modules = (
                re.sub(r"^(backbone\.\w+|.*\.fine_proj|\w+)\..*", r"\1", name) for name in self.untrained
            )
            parts.append(f"untrained: {', '.join(dict.fromkeys(modules))}")
        if self.problems:
            parts.append(f"{len(self.problems)} names do not fit")
        return f"{self.file} ({self.kind}): " + "; ".join(parts)


def restore_weights(model: nn.Module, values: Mapping[str, Tensor], file: str) -> None:
    """Load the state dict of a checkpoint of this very model; every process must call it.

    Raises:
        RuntimeError: names or shapes differ.
        WeightsError: values are not finite floating-point numbers; the model is unchanged then.
    """
    wanted = model.state_dict()
    check_values(file, {name: (values[name], wanted[name]) for name in values if name in wanted})
    model.load_state_dict(values)


def check_values(file: str, tensors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Check given and wanted tensors, which may be sharded, by name; every process must call it.

    Raises:
        WeightsError: a tensor holds values that no trained model has. All processes raise the same one.
    """
    problems = ((i, _problem(name, *pair)) for i, (name, pair) in enumerate(tensors.items()))
    found = next(((i, problem) for i, problem in problems if problem), None)
    if first := min(filter(None, all_gather_object(found)), default=None):
        raise WeightsError(file, first[1])


def _check_tensor(file: str, name: str, given: Tensor, wanted: Tensor) -> None:
    if problem := _problem(name, given, wanted):
        raise WeightsError(file, problem)


def _problem(name: str, given: Tensor, wanted: Tensor) -> str | None:
    """Return why this process's part of a tensor cannot be used; `name` is that of the model."""
    if not wanted.is_floating_point():
        is_cut = given.is_complex()
        return f"'{name}' is of type {given.dtype}, in the model {wanted.dtype}" if is_cut else None
    if not given.is_floating_point():
        return f"'{name}' is of type {given.dtype}; weights are floating-point numbers"
    values = local_part(given).to(wanted.dtype)
    finite = values.isfinite()
    if not finite.all():
        first, share = float(values[~finite][0]), f"{int((~finite).sum())} of {values.numel()} values"
        return f"'{name}' holds {first} ({share} are not finite)"
    if VARIANCE.search(name) and (values < 0).any():
        return f"'{name}' holds {float(values.min()):g}; a variance is not negative"
    return None


def _fit(
    report: LoadReport, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], untrained: str
) -> dict[str, Tensor]:
    """Return values for the tensors of the model, and fill the report."""
    values: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if COMPUTED.search(name):
            continue
        if name not in wanted:
            if not OPTIONAL.search(name) and not UNUSED.search(name):
                report.problems.append(Misfit("unexpected", name, tuple(tensor.shape), None))
            continue
        _check_tensor(report.file, name, tensor, wanted[name])
        if tensor.shape == wanted[name].shape:
            values[name] = tensor
            report.loaded.append(name)
        elif adapted := adapt(name, tensor, wanted[name]):
            values[name], report.adapted[name] = adapted
        else:
            shapes = tuple(tensor.shape), tuple(wanted[name].shape)
            report.problems.append(Misfit("wrong shape", name, *shapes))
    for name, tensor in wanted.items():
        if name not in given and not _may_be_missing(name):
            if re.search(untrained, name):
                report.untrained.append(name)
            else:
                report.problems.append(Misfit("missing", name, None, tuple(tensor.shape)))
    report.problems.sort(key=lambda misfit: misfit.problem)
    return values


def load_weights(model: nn.Module, source: str | Path | Checkpoint, *, strict: bool = True) -> LoadReport:
    """Load weights into a model from a path, a URL, or what `read_checkpoint` returned.

    With `strict=False`, tensors that do not fit are skipped and logged as a table. Differences by design are
    adapted in any case.

    Raises:
        WeightsError: the file cannot be read; or names or shapes do not fit and `strict` is set; or nothing
            fits at all; or values are not finite floating-point numbers. The model is unchanged then.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    scheme, given = translate(checkpoint.model)
    wanted = model.state_dict()
    report = LoadReport(checkpoint.file, scheme.title)
    values = _fit(report, given, wanted, scheme.untrained)
    if not values:
        raise _error(report, "none of its weights is in the model: another architecture, or unknown names")
    if strict and report.problems:
        raise _error(report, _advice(report))
    with torch.no_grad():
        for name, value in values.items():
            wanted[name].copy_(value)
    reset = {name for name, note in report.adapted.items() if note.startswith("re-initialized")}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    filled = sizes.keys() & values.keys() - reset
    head = {name for name in sizes if name.startswith(HEAD) and not _may_be_missing(name)}
    report.share_loaded = sum(sizes[name] for name in filled) / max(sum(sizes.values()), 1)
    report.has_trained_head = bool(head) and head <= filled
    is_expected = not report.problems and report.adapted.keys() == reset  # as in any fine-tuning
    logger.log(logging.INFO if is_expected else logging.WARNING, "%s", report.summary())
    if report.problems:
        logger.warning("what does not fit:\n%s", Block(report.table()))
    return report


def _may_be_missing(name: str) -> bool:
    return any(kind.search(name) for kind in (COMPUTED, OPTIONAL, OF_TASKS))


def _advice(report: LoadReport) -> str:
    if all(problem == "unexpected" and OF_TASKS.search(name) for problem, name, *_ in report.problems):
        return (
            "it is a model for several tasks, and this config is for one; type its SOLVER.TASKS, "
            "or take one task out: mask2former convert FILE ONE.pth --task TASK"
        )
    return "its weights do not fit the model; MODEL.WEIGHTS_STRICT False loads what fits"


def _error(report: LoadReport, reason: str) -> WeightsError:
    return WeightsError(report.file, Block(f"{reason} ({report.kind})\n{report.table(ROWS_IN_ERROR)}"))
