"""The page docs/tables.md: each row of the papers' tables, with its config, its cost and what runs here.

Published figures, configs and prose are data, in `tables.yaml`, whose head describes a row. What
benchmarks/study.py measured is in `ablations.json`.
"""

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mask2former.tools.flops import GIGA, MILLION, MeanCost
from mask2former.tools.paper.costs import read_costs

TABLES, ABLATIONS = (Path(__file__).parent / name for name in ("tables.yaml", "ablations.json"))
OWN_COLUMNS = ["params here", "FLOPs here", "config", "state"]
NONE = "-"


class Row(NamedTuple):
    """A row of a table: published cells, and what of it is here; `configs` are by the title of their link.

    Parameters are those of the `first` config, FLOPs those of the `counted` one. Both are "" if nothing is
    counted; `parameters` are then what is known.
    """

    cells: list[str]
    configs: dict[str, str]
    first: str
    counted: str
    parameters: str
    state: str


class Table(NamedTuple):
    """A table of a paper; `source` and `note` are Markdown."""

    title: str
    source: str
    note: str
    columns: list[str]
    rows: list[Row]


def read_data() -> dict[str, Any]:
    """Return the content of `tables.yaml`, with all scalars as they are written there."""
    data: dict[str, Any] = yaml.load(TABLES.read_text(encoding="utf-8"), yaml.BaseLoader)
    return data


def read_tables() -> list[Table]:
    """Return the tables in the order of the page."""
    data = read_data()
    states = {method["name"]: method["state"] for method in data["methods"]}
    return [
        Table(
            title=table["title"],
            source=data["papers"][table["source"]],
            note=table.get("note", ""),
            columns=table["columns"],
            rows=[_read_row(entry, data["tasks"], states) for entry in table["rows"]],
        )
        for table in data["tables"]
    ]


def _read_row(entry: Any, tasks: dict[str, str], states: dict[str, str]) -> Row:
    if isinstance(entry, list):
        return Row(entry, {}, "", "", NONE, "")
    configs = entry.get("config", {})
    if isinstance(configs, str):
        titles = tasks if "{task}" in configs else {"config": ""}
        configs = {title: configs.format(task=task) for title, task in titles.items()}
    state = "trains here" if configs else states.get(entry["cells"][0], "")
    first = "" if "parameters" in entry else next(iter(configs.values()), "")
    return Row(
        cells=entry["cells"],
        configs=configs,
        first=first,
        counted=entry.get("count", first),
        parameters=entry.get("parameters", NONE),
        state=entry.get("state", state),
    )


def counted_configs(tables: Iterable[Table]) -> list[str]:
    """Return the configs whose parameters or FLOPs are on the page, each once."""
    rows = [row for table in tables for row in table.rows if row.first]
    return list(dict.fromkeys(config for row in rows for config in (row.first, row.counted)))


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is the head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, re.sub(r"[^|]+", "---", head), *body])


def _own_cells(row: Row, costs: dict[str, MeanCost]) -> list[str]:
    """Return the cells of `OWN_COLUMNS`."""
    links = " ".join(f"[{title}](../configs/{config})" for title, config in row.configs.items()) or NONE
    if not row.first:
        return [row.parameters, NONE, links, row.state]
    parameters, flops = costs[row.first].parameters / MILLION, costs[row.counted].as_authors / GIGA
    return [f"{parameters:.1f}M", f"{flops:.1f}G", links, row.state]


def table_section(table: Table, costs: dict[str, MeanCost]) -> str:
    """Return the section of a table; it has columns of our own if there is something to say in them."""
    own = any(row.state for row in table.rows)
    body = [[*row.cells, *(_own_cells(row, costs) if own else [])] for row in table.rows]
    text = markdown([[*table.columns, *(OWN_COLUMNS if own else [])], *body])
    return f"## {table.title}\n\n{' '.join(f'Source: {table.source}. {table.note}'.split())}\n\n{text}"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Return both with one decimal, or with two where the mean is below 1; a dash for no values."""
    if not values:
        return "–"
    digits = 2 if statistics.mean(values) < 1 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def study_table(results: dict[str, Any]) -> str:
    """Return means and sample standard deviations of what benchmarks/study.py measured."""
    labels = list(results["rows"][0].get("labels", {})) if results["rows"] else []
    body = [
        [
            row["title"],
            *(row["labels"][label] for label in labels),
            str(len(row["seed"])),
            *(_mean_and_spread(row.get(column, [])) for column in results["columns"]),
        ]
        for row in results["rows"]
    ]
    return markdown([["model", *labels, "seeds", *results["columns"]], *body])


def ablation_section(title: str, prose: str, results: dict[str, Any]) -> str:
    """Return the section of the drawn dataset; `prose` names facts of `results` in braces."""
    return f"## {title}\n\n{prose.format(**results)}\n\n{study_table(results)}"


def _method_section(title: str, prose: str, methods: Iterable[dict[str, str]]) -> str:
    rows = [
        [f"[{m['name']}]({m['paper']})" if m["paper"] else m["name"], m["state"], m["nearest"]]
        for m in methods
    ]
    return f"## {title}\n\n{prose}\n\n{markdown([['method', 'state', 'nearest here'], *rows])}"


def _contents(sections: Iterable[str]) -> Iterator[str]:
    for section in sections:
        title = section.splitlines()[0].removeprefix("## ")
        anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        yield f"- [{title}](#{anchor})"


def page() -> str:
    """Return the page in Markdown.

    Raises:
        ValueError: a config has not been counted.
    """
    data, tables = read_data(), read_tables()
    costs = read_costs(counted_configs(tables))
    sections = [table_section(table, costs) for table in tables]
    if ABLATIONS.exists():
        results = json.loads(ABLATIONS.read_text(encoding="utf-8"))
        sections.append(ablation_section(data["ablations"]["title"], data["ablations"]["prose"], results))
    sections.append(
        _method_section(data["other_methods"]["title"], data["other_methods"]["prose"], data["methods"])
    )
    return "\n\n".join((data["intro"].strip(), "\n".join(_contents(sections)), *sections))
