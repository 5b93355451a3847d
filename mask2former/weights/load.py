"""Putting the weights of a file into a model, and saying exactly what came of it.

Names are translated (`weight_names.py`), shapes compared, and what may differ by design is adapted: a class
head for another number of classes starts anew, queries are cut or multiplied, Swin's position tables are
interpolated. All else that does not fit is an error, and then the model is left as it was.

Shapes: `Q` queries, `C` channels, `w` the side of a Swin window in tokens, `A` its attention heads.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.weights.read import Checkpoint, WeightsError, read_checkpoint
from mask2former.weights.rename import translate

__all__ = ["Checkpoint", "LoadReport", "Misfit", "WeightsError", "load_weights", "read_checkpoint"]

logger = logging.getLogger(__name__)

# What a model computes from its configuration: a file neither supplies nor overrules it.
COMPUTED = re.compile(r"(^|\.)(relative_position_index|empty_weight|pixel_mean|pixel_std)$")
# Batch-norm counters: files of frozen norms lack them, and nothing depends on them.
OPTIONAL = re.compile(r"\.num_batches_tracked$")
HEAD = "sem_seg_head."
ROWS_IN_ERROR = 30
QUERY_NOISE = 0.1  # of their standard deviation: equal queries would stay equal for ever


class Misfit(NamedTuple):
    """A name with its shape in the file and in the model; None where it does not exist."""

    name: str
    in_file: tuple[int, ...] | None
    in_model: tuple[int, ...] | None


@dataclass
class LoadReport:
    """What became of each tensor, by the model's names (`unexpected`: by the file's, translated).

    `adapted` maps a name to what was done to it; `untrained` are names that such a file cannot hold, as the
    head in a file of ImageNet; `share_loaded` is the share of the model's parameters that come from the file,
    in [0, 1].
    """

    file: str
    kind: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    untrained: list[str] = field(default_factory=list)
    missing: list[Misfit] = field(default_factory=list)
    unexpected: list[Misfit] = field(default_factory=list)
    wrong_shape: list[Misfit] = field(default_factory=list)
    share_loaded: float = 0.0
    has_trained_head: bool = False

    @property
    def problems(self) -> list[tuple[str, Misfit]]:
        """All that does not fit, each with its kind."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": self.wrong_shape}
        return [(kind, misfit) for kind, misfits in kinds.items() for misfit in misfits]

    def table(self, rows: int | None = None) -> str:
        """The problems, one a line, at most `rows` of them."""
        lines = [(kind, *misfit) for kind, misfit in self.problems]
        text = tabulate(lines[:rows], ("problem", "name", "in the file", "in the model"), missingval="-")
        left_out = len(lines[rows:]) if rows is not None else 0
        return text + (f"\n... and {left_out} more" if left_out else "")

    def summary(self) -> str:
        """One line for a log, as `x.pth (Mask2Former checkpoint): loaded 99.9 % of parameters; ...`."""
        parts = [f"loaded {_percent(self.share_loaded)} of parameters", *dict.fromkeys(self.adapted.values())]
        if self.untrained:
            parts.append(f"not in such a file, untrained: {', '.join(_modules(self.untrained))}")
        if self.problems:
            parts.append(f"{len(self.problems)} names do not fit")
        return f"{self.file} ({self.kind}): " + "; ".join(parts)


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(share * 1000) / 10:g} %"


def _modules(names: list[str]) -> list[str]:
    """The large parts that the names belong to."""
    return list(dict.fromkeys(re.sub(r"^(backbone\.\w+|\w+)\..*", r"\1", name) for name in names))


def _keep_initial(given: Tensor, wanted: Tensor) -> Tensor | None:
    """A class head for other classes: nothing of the file's is of use."""
    return wanted if given.shape[1:] == wanted.shape[1:] else None


def _resize_queries(given: Tensor, wanted: Tensor) -> Tensor | None:
    """(Q, C) -> (Q', C): the first Q', or all of them over and over, the copies with a little noise."""
    if given.shape[1:] != wanted.shape[1:]:
        return None
    old, new = len(given), len(wanted)
    if not old:
        return None
    resized = given.float().repeat(-(-new // old), 1)[:new]
    noise = torch.randn(resized.shape, generator=torch.Generator().manual_seed(0))
    resized[old:] += QUERY_NOISE * given.float().std() * noise[old:]
    return resized


def _resize_position_table(given: Tensor, wanted: Tensor) -> Tensor | None:
    """((2w-1)^2, A) -> ((2w'-1)^2, A): interpolated as an image of offsets, bicubically."""
    old, new = isqrt(len(given)), isqrt(len(wanted))
    if given.shape[1:] != wanted.shape[1:] or old**2 != len(given) or not old:
        return None
    image = given.float().T.reshape(1, -1, old, old)
    return F.interpolate(image, size=(new, new), mode="bicubic").reshape(-1, new**2).T


class Adaptation(NamedTuple):
    """What is done where a tensor's rows differ by design; `count` tells how many things they stand for."""

    pattern: str
    adapt: Callable[[Tensor, Tensor], Tensor | None]
    done: str
    count: Callable[[int], int] = lambda rows: rows


ADAPTATIONS = (
    Adaptation(
        r"\.class_embed\.(weight|bias)$",
        _keep_initial,
        "re-initialized: class head ({} -> {} classes)",
        lambda rows: rows - 1,  # the last is "no object"
    ),
    Adaptation(r"\.query_feat\.weight$", _resize_queries, "resized: query features ({} -> {})"),
    Adaptation(r"\.query_embed\.weight$", _resize_queries, "resized: query positions ({} -> {})"),
    Adaptation(
        r"\.relative_position_bias_table$",
        _resize_position_table,
        "interpolated: relative position tables (window {} -> {})",
        lambda rows: (isqrt(rows) + 1) // 2,
    ),
)


def _adapt(name: str, given: Tensor, wanted: Tensor) -> tuple[Tensor, str] | None:
    """The tensor in the wanted shape and what was done, if the difference is one by design."""
    for row in ADAPTATIONS:
        if re.search(row.pattern, name) and given.ndim == wanted.ndim:
            value = row.adapt(given, wanted)
            note = row.done.format(row.count(len(given)), row.count(len(wanted)))
            return None if value is None else (value, note)
    return None


def _fit(
    report: LoadReport, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fresh: str
) -> dict[str, Tensor]:
    """The values for the model's tensors; fills the report."""
    values: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if COMPUTED.search(name):
            continue
        if name not in wanted:
            if not OPTIONAL.search(name):
                report.unexpected.append(Misfit(name, tuple(tensor.shape), None))
        elif tensor.shape == wanted[name].shape:
            values[name] = tensor
            report.loaded.append(name)
        elif adapted := _adapt(name, tensor, wanted[name]):
            values[name], report.adapted[name] = adapted
        else:
            report.wrong_shape.append(Misfit(name, tuple(tensor.shape), tuple(wanted[name].shape)))
    for name, tensor in wanted.items():
        if name not in given and not COMPUTED.search(name) and not OPTIONAL.search(name):
            if re.search(fresh, name):
                report.untrained.append(name)
            else:
                report.missing.append(Misfit(name, None, tuple(tensor.shape)))
    return values


def _count_parameters(report: LoadReport, model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """How much of the model is the file's, and whether its head is."""
    started_anew = {name for name, note in report.adapted.items() if note.startswith("re-initialized")}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    filled = {name for name in sizes if name in values and name not in started_anew}
    head = {name for name in sizes if name.startswith(HEAD)}
    report.share_loaded = sum(sizes[name] for name in filled) / max(sum(sizes.values()), 1)
    report.has_trained_head = bool(head) and head <= filled


def load_weights(model: nn.Module, source: str | Path | Checkpoint, *, strict: bool = True) -> LoadReport:
    """Fill a model from a file, an address, or what `read_checkpoint` returned.

    With `strict=False` what does not fit is left out and logged as a table. Either way a class head for
    another number of classes keeps the model's initial values, and another number of queries is adapted.

    Raises:
        WeightsError: the file cannot be read; or names or shapes do not fit and `strict` is set; or nothing
            fits at all. The model is unchanged then.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    scheme, given = translate(checkpoint.model)
    wanted = model.state_dict()
    report = LoadReport(checkpoint.file, scheme.title)
    values = _fit(report, given, wanted, scheme.fresh)
    _check(report, strict and bool(report.problems), nothing=not values)
    with torch.no_grad():
        for name, value in values.items():
            wanted[name].copy_(value)
    _count_parameters(report, model, values)
    logger.log(logging.WARNING if report.adapted or report.problems else logging.INFO, "%s", report.summary())
    if report.problems:
        logger.warning("what does not fit:\n%s", report.table())
    return report


def _check(report: LoadReport, refused: bool, nothing: bool) -> None:
    """Raise where the weights must not be used."""
    if nothing:
        head = "none of its weights is one of the model's: another architecture, or names not known here"
        raise WeightsError(report.file, f"{head} ({report.kind})\n{report.table(ROWS_IN_ERROR)}")
    if refused:
        advice = "Set MODEL.WEIGHTS_STRICT False to load what fits."
        head = f"its weights do not fit the model ({report.kind}). {advice}"
        raise WeightsError(report.file, f"{head}\n{report.table(ROWS_IN_ERROR)}")
