"""A skipped test of exactness fails in CI, with and without worker processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "test_golden.py": "import pytest\ndef test(): pytest.skip('no file')",
    "modeling/test_state_dicts.py": "import pytest\npytest.importorskip('no_such_module')",
    "test_node.py": "def test(shared): pass",
    "test_other.py": "import pytest\ndef test(): pytest.skip('no file')",
}


def run(folder: Path, names: list[str], *options: str, **environment: str) -> subprocess.CompletedProcess:
    """Run pytest with this folder's conftest.py on some of the cases and one test that passes."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_passing.py").write_text("def test(): pass")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CASES[name])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CI", "M2F_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    return subprocess.run(command, env={**kept, **environment}, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_skipped_test_of_exactness_fails_ci(tmp_path: Path, processes: str) -> None:
    result = run(tmp_path, list(CASES), "-n", processes, CI="true")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout
    failures = [line for line in result.stdout.splitlines() if "was skipped, which is a failure" in line]
    assert len(failures) == 2
    assert "test_golden.py::test " in failures[0] + failures[1]
    assert "test_state_dicts.py " in failures[0] + failures[1]


def test_other_skips_and_skips_elsewhere_pass(tmp_path: Path) -> None:
    allowed = run(tmp_path, ["test_node.py", "test_other.py"], CI="true")
    assert allowed.returncode == 0 and "1 passed, 2 skipped" in allowed.stdout
    assert run(tmp_path, list(CASES)).returncode == 0
