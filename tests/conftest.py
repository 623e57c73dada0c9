"""Rules of every test: default signals, a time-out that ends the run, and no silent skip in CI."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In CI a missing program is a failure: a skipped test checks nothing.
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

#: Seconds beyond the limit of a test, for fixtures to stop their processes.
GRACE_SECONDS = "40"

watchdog.reset_signals()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "timeout_grace", "seconds after a test's time-out until its processes are killed", default=GRACE_SECONDS
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("timeout")
    limit = marker.args[0] if marker else float(item.config.getini("timeout"))
    if not limit:  # pytest-timeout: no limit
        return (yield)
    capture = item.config.pluginmanager.getplugin("capturemanager")
    grace = float(item.config.getini("timeout_grace"))
    with watchdog.watched(limit, grace, lambda: capture.suspend_global_capture(in_=True)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Fail skipped tests in CI; expected failures are not skipped."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if IN_CI and report.skipped:
        _fail(report, collector.nodeid)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport, name: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{name}: {reason} (with CI set in the environment a test that is skipped has failed)"
