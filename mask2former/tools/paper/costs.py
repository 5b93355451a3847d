"""Costs of the configs that docs/costs.md and docs/tables.md show, kept in `costs.json`.

Counting all of them takes many minutes; `mask2former analyze --recount` does it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mask2former.config import load_config
from mask2former.tools.flops import MeanCost, mean_cost
from mask2former.utils.atomic_files import atomic_write

COSTS = Path(__file__).parent / "costs.json"


def read_costs(configs: Sequence[str]) -> dict[str, MeanCost]:
    """Return the kept costs of some configs.

    Raises:
        ValueError: a config has none.
    """
    kept = _read()
    for config in configs:
        if config not in kept:
            raise ValueError(
                f"{COSTS} lacks {config}; type `mask2former analyze --tables --recount {config}`"
            )
    return {config: kept[config] for config in configs}


def recount(configs: Sequence[str], part: str) -> None:
    """Count those of `configs` with `part` in their name, and keep each cost at once; drop other configs.

    Raises:
        ValueError: a config is wrong.
        OSError: the costs cannot be written.
    """
    kept = {config: cost for config, cost in _read().items() if config in configs}
    for config in tqdm([config for config in configs if part in config], unit="config"):
        kept[config] = count(config)
        _write(kept)


def count(config: str) -> MeanCost:
    """Return the cost of a config's model; takes seconds."""
    return MeanCost(*(round(value) for value in mean_cost(load_config(config))))


def _read() -> dict[str, MeanCost]:
    entries = json.loads(COSTS.read_text(encoding="utf-8")).items()
    return {config: MeanCost(**cost) for config, cost in entries}


def _write(costs: dict[str, MeanCost]) -> None:
    lines = [f"{json.dumps(config)}: {json.dumps(costs[config]._asdict())}" for config in sorted(costs)]
    with atomic_write(COSTS) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
