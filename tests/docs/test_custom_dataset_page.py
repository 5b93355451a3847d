"""docs/custom_datasets.md runs as it stands: data is drawn, trained on, and used."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_runs import restored_log

from mask2former.data import DatasetCatalog, MetadataCatalog
from mask2former.tools.train import main

__all__ = ["restored_log"]

PAGE = (Path(__file__).parents[2] / "docs" / "custom_datasets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMAND = "mask2former-train"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DatasetCatalog, "_entries", dict(DatasetCatalog._entries))
    monkeypatch.setattr(MetadataCatalog, "_entries", dict(MetadataCatalog._entries))


def test_all_blocks_run_in_a_row(elsewhere):
    assert [language for language, _ in BLOCKS] == ["python", "sh", "python"] * 3 + ["python"]
    for number, (language, code) in enumerate(BLOCKS, 1):
        if language == "python":
            exec(compile(code, f"docs/custom_datasets.md, block {number}", "exec"), {"__name__": "page"})
            continue
        command, *argv = shlex.split(code.replace("\\\n", " "))
        assert command == COMMAND
        assert main([*argv, "MODEL.DEVICE", "cpu"]) == 0
