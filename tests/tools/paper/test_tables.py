"""The papers' tables: the page is current, each config has a row, costs are those published."""

import re
from pathlib import Path

import pytest

from mask2former.config import config_names
from mask2former.tools.analyze import main
from mask2former.tools.flops import GIGA, MILLION, MeanCost
from mask2former.tools.paper import tables as paper_tables
from mask2former.tools.paper.costs import read_costs
from mask2former.tools.paper.tables import (
    NONE,
    Row,
    ablation_section,
    counted_configs,
    read_data,
    read_tables,
    table_section,
)

PAGE = Path(__file__).parents[3] / "docs" / "tables.md"
TABLES = read_tables()
COSTS = read_costs(counted_configs(TABLES))
ROWS = [(table, row) for table in TABLES for row in table.rows]
# Of these not all are rows
OTHER_FOLDERS = ("_base_/", "comparators/", "films/", "finetune/", "scenes/", "shapes/", "youtubevis_")
OTHER_EXPERIMENTS = ("/eomt/", "/joint-segmentation/", "/vit/")


def test_the_page_is_what_the_command_prints(capsys):
    assert main(["--tables"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


def test_rows_link_configs_and_every_experiment_of_the_papers_has_a_row():
    linked = {config for _, row in ROWS for config in (*row.configs.values(), row.counted) if config}
    experiments = {name for name in config_names() if "/Base-" not in name}
    of_the_papers = {
        name
        for name in experiments
        if not name.startswith(OTHER_FOLDERS) and not any(part in name for part in OTHER_EXPERIMENTS)
    }
    assert experiments >= linked >= of_the_papers


def test_links_lead_to_files_and_sections():
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGE.read_text(encoding="utf-8"))
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {anchor for file, anchor in links if not file} == titles
    assert not [file for file, _ in links if file and not (PAGE.parent / file).exists()]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_rows_fill_the_columns_and_say_what_is_here(table):
    assert {len(row.cells) for row in table.rows} == {len(table.columns)}
    assert len({bool(row.state) for row in table.rows}) == 1
    for row in table.rows:
        assert row.configs or not row.state.startswith("trains here")


def test_every_method_is_in_a_table_and_has_a_paper():
    first_cells = {row.cells[0] for _, row in ROWS}
    for method in read_data()["methods"]:
        assert method["name"] in first_cells
        assert method["paper"].startswith("https://arxiv.org/abs/") or method["name"] == "Megvii"


def published(column):
    """Return the figures of a column, without their unit, with their rows; of rows with a config."""
    cells = [
        (row.cells[table.columns.index(column)], row)
        for table, row in ROWS
        if column in table.columns and row.configs
    ]
    return [(float(cell[:-1]), row) for cell, row in cells if cell != NONE]


# The 502M of BEiT-UperNet are of no public model: its authors' has 441M, as ViT-Adapter's paper counts too
PARAMETERS = [(figure, row) for figure, row in published("params") if row.cells[0] != "BEiT-UperNet"]
FLOPS = [(figure, row) for figure, row in published("FLOPs") if row.counted]


def title(value):
    return " ".join(value.configs.values()) if isinstance(value, Row) else str(value)


@pytest.mark.parametrize(("figure", "row"), PARAMETERS, ids=title)
def test_parameters_are_the_published_ones_rounded(figure, row):
    known = float(row.parameters[:-1]) if row.parameters != NONE else COSTS[row.first].parameters / MILLION
    assert round(known) == figure


@pytest.mark.parametrize(("figure", "row"), FLOPS, ids=title)
def test_flops_are_the_published_ones(figure, row):
    assert COSTS[row.counted].as_authors / GIGA == pytest.approx(figure, rel=0.01)


def test_all_kinds_of_published_figures_are_compared():
    assert len(PARAMETERS) > 30
    assert len(FLOPS) > 50


def test_counts_of_a_table(monkeypatch):
    """One is counted on another config, one on its own, one has no config, and one is not counted."""
    data = {
        "papers": {"p": "[A paper](https://example.org)"},
        "tasks": {"AP": "instance", "PQ": "panoptic"},
        "methods": [{"name": "Other", "paper": "", "state": "figures only: boxes", "nearest": "this"}],
        "tables": [
            {
                "title": "Table 1",
                "source": "p",
                "note": "A note.",
                "columns": ["method", "FLOPs"],
                "rows": [
                    {"cells": ["Ours", "101G"], "config": "a_{task}.yaml", "count": "b.yaml"},
                    {"cells": ["Large", "100G"], "config": "b.yaml"},
                    {"cells": ["Other", "-"]},
                    {"cells": ["Foreign", "9G"], "config": "c.yaml", "parameters": "7.1M", "state": "there"},
                ],
            },
            {"title": "Table 2", "source": "p", "columns": ["key", "value"], "rows": [["layers", "9"]]},
        ],
    }
    monkeypatch.setattr(paper_tables, "read_data", lambda: data)
    first, second = read_tables()
    assert counted_configs([first, second]) == ["a_instance.yaml", "b.yaml"]
    costs = {
        "a_instance.yaml": MeanCost(44_040_000, 5e9, 6e9, 7e9),
        "b.yaml": MeanCost(9_000_000, 101.1e9, 99e9, 88e9),
    }
    assert table_section(first, costs).splitlines() == [
        "## Table 1",
        "",
        "Source: [A paper](https://example.org). A note.",
        "",
        "| method | FLOPs | params here | FLOPs here | config | state |",
        "|---|---|---|---|---|---|",
        "| Ours | 101G | 44.0M | 101.1G | "
        "[AP](../configs/a_instance.yaml) [PQ](../configs/a_panoptic.yaml) | trains here |",
        "| Large | 100G | 9.0M | 101.1G | [config](../configs/b.yaml) | trains here |",
        "| Other | - | - | - | - | figures only: boxes |",
        "| Foreign | 9G | 7.1M | - | [config](../configs/c.yaml) | there |",
    ]
    assert table_section(second, {}).splitlines()[4:] == ["| key | value |", "|---|---|", "| layers | 9 |"]


def test_means_and_spreads_of_the_ablations():
    """By hand: 1, 2 and 3 have the mean 2 and the standard deviation 1; one seed has none."""
    figures = {"seed": [1, 2, 3], "PQ": [1, 2, 3], "AP": [5, 5, 5], "s/step": [0.25, 0.25, 0.25]}
    rows = [
        {"title": "all", "labels": {"paper's table": "4a"}, **figures},
        {
            "title": "less",
            "labels": {"paper's table": "5"},
            "seed": [1],
            "PQ": [7.06],
            "AP": [1],
            "s/step": [2],
        },
    ]
    results = {"steps": 9, "columns": ["PQ", "AP", "s/step"], "rows": rows}
    section = ablation_section("A title", "For {steps} steps.", results)
    assert section.splitlines() == [
        "## A title",
        "",
        "For 9 steps.",
        "",
        "| model | paper's table | seeds | PQ | AP | s/step |",
        "|---|---|---|---|---|---|",
        "| all | 4a | 3 | 2.0 ± 1.0 | 5.0 ± 0.0 | 0.25 ± 0.00 |",
        "| less | 5 | 1 | 7.1 | 1.0 | 2.0 |",
    ]
