"""Fixtures that every test may use, and how hypothesis and CI run the tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

IN_CI = bool(os.environ.get("CI"))
NO_SHARED = "M2F_SHARED is not set"
EXACT = {  # what exactness rests on, and the page, which nothing else shows to work
    "test_node.py",
    "test_cpu.py",
    "test_cuda_source.py",
    "test_golden.py",
    "test_nvrtc.py",
    "test_page_in_browser.py",
    "test_state_dicts.py",
}

settings.register_profile("project", deadline=None, derandomize=IN_CI)
settings.load_profile("project")


@pytest.fixture
def shared() -> Path:
    """The folder with the large shared samples; the test is skipped where it is not at hand."""
    root = os.environ.get("M2F_SHARED")
    if not root:
        pytest.skip(NO_SHARED)
    return Path(root)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a test of exactness that was skipped is a failure, unless it wants the shared samples."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not IN_CI or terminal is None:  # xdist's workers have no terminal
        return
    for report in terminal.stats.get("skipped", []):
        if Path(report.nodeid.split("::")[0]).name in EXACT and NO_SHARED not in str(report.longrepr):
            terminal.write_line(f"{report.nodeid} was skipped, which is a failure in CI", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
