"""CONTRIBUTING.md's recipes run as they stand; the pages name only what exists."""

import re
from pathlib import Path

import pytest

from mask2former.modeling import MaskFormer  # noqa: F401  (registers all parts, before recipes add theirs)
from mask2former.utils.registry import BACKBONE, CRITERION, SEM_SEG_HEADS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^### (.*?)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
FOLDERS = r"mask2former|tests|datasets|demo|docs|configs|benchmarks|scripts"


def test_the_page_has_its_recipes():
    assert list(RECIPES) == ["Add a backbone", "Add a pixel decoder", "Add a loss", "Add a dataset"]
    assert PAGE.count("```python") == len(RECIPES)


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(title, elsewhere, monkeypatch):
    for registry in (BACKBONE, CRITERION, SEM_SEG_HEADS):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    exec(compile(RECIPES[title], f"CONTRIBUTING.md: {title}", "exec"), {"__name__": "recipe"})


@pytest.mark.parametrize(
    "page",
    [
        *("README.md", "CONTRIBUTING.md", "datasets/README.md", "configs/README.md"),
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    ],
)
def test_links_and_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(rf"`((?:{FOLDERS})/[\w./]*)[ `]", text)
    paths = [(ROOT / page).parent / link for link in links] + [ROOT / path for path in named]
    assert paths
    assert not [path for path in paths if not path.exists()]
