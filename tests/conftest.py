"""Second runs: a test that starts programs is run once more when it fails, and the summary shows it as RERUN.

Those tests meet what a machine does beside them: other programs, a slow disk, a kernel that takes its time. One that
needed its second run is a fault to look at all the same (docs/testing.md). Tests of the engine never get one.

And no example of hypothesis has a deadline: its 200 ms say how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

START_PROGRAMS = ("browser", "cli", "deployments", "docs", "fs", "gpu", "jupyter", "live", "mcp", "sdk", "serve")
"""The directories whose tests get a second run."""

MOST = 5
"""Second runs in one run of all tests. Where more fail, something is broken, and is said sooner."""

_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """What failed the first time is shown whole. (Options of a plugin that may not be installed: no addopts.)"""
    if config.pluginmanager.hasplugin("rerunfailures"):
        config.option.rerun_show_tracebacks = True
        if config.option.max_suite_reruns is None:
            config.option.max_suite_reruns = MOST


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    here = Path(__file__).parent
    # A run that came to pytest's time limit is the last one: its clock is not wound again for a second.
    again = pytest.mark.flaky(reruns=1, rerun_except="from pytest-timeout")
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in START_PROGRAMS:
            item.add_marker(again)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = report.failed or (report.when != "setup" and item.stash.get(_FAILED, False))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Nothing of a failed run is in the way of the second, or of the next test: what was set up for the module or the
    session is taken down as well, and made anew by who needs it."""
    if item.get_closest_marker("flaky") is not None and item.stash.get(_FAILED, False):
        item.session._setupstate.teardown_exact(None)
