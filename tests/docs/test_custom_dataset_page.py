"""docs/custom_datasets.md runs as it is: each example makes data, trains on it, and predicts."""

import re
import shlex
from pathlib import Path

from tiny_runs import restored_log

from mask2former.tools.train import main

__all__ = ["restored_log"]

PAGE = (Path(__file__).parents[2] / "docs" / "custom_datasets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMAND = ["mask2former", "train"]


def test_all_blocks_of_the_page_run(elsewhere):
    languages = ["python", "sh", "python"] * 3 + ["python", "sh"] * 2 + ["python"] * 2
    assert [language for language, _ in BLOCKS] == languages
    for number, (language, code) in enumerate(BLOCKS, 1):
        if language == "python":
            exec(compile(code, f"docs/custom_datasets.md, block {number}", "exec"), {"__name__": "page"})
            continue
        words = shlex.split(code.replace("\\\n", " "))
        assert words[:2] == COMMAND
        assert main([*words[2:], "MODEL.DEVICE", "cpu"]) == 0
