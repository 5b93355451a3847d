"""Pages that show a study show its kept figures, whose rows are those of the study."""

import json
import sys
from pathlib import Path

import pytest

from mask2former.tools.paper.tables import study_table

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from study import STUDIES, read_study  # noqa: E402

PAGES = {
    "joint": "docs/joint_training.md",
    "small_objects": "docs/small_objects.md",
    "precision": "docs/training.md",
    "eomt": "docs/eomt.md",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_kept_figures_of_its_study(name):
    kept = json.loads((STUDIES / f"{name}.json").read_text(encoding="utf-8"))
    study = read_study(name)
    assert study_table(kept) in (ROOT / PAGES[name]).read_text(encoding="utf-8")
    assert (kept["config"], kept["steps"]) == (study.config, study.steps)
    rows = {row["name"]: row for row in study.rows}
    for row in kept["rows"]:
        assert {key: row[key] for key in rows[row["name"]]} == rows[row["name"]]
        assert len(set(row["seed"])) == len(row["seed"])
