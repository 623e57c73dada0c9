"""The ground of a scenario, and the table of all observations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from faults.ground import Ground

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Name of the property of a scenario's report that has its row of the table.
ROW = "faults-row"

HEAD = """\
# Faults survived

Each row is a test of `tests/faults/`, with a real Redis, real workers, and an API on real sockets that keeps its own
journal. Beyond its own bound each test checks that every acknowledged event has exactly one outcome, that nothing
else and no changed body reached the API, that each instance's order was kept, that the relay's counters equal those
computed from the journals, that a fresh event is delivered within 10 s, that no process, client or key is left
behind, and that the token is in no log and nowhere in Redis. It fails as void if the fault did not occur. *Repeats*
are the times that the API took an event beyond the first: 0 unless the bound says otherwise, where K is the number of
events in flight, or answered and not committed, of killed processes. Timers are scaled down (lease 2 s, deadline of a
POST 1 s, back-off from 50 ms).

Written by `make faults-table` from one run.

| # | fault | bound | observed |
|---|---|---|---|
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", metavar="FILE", help="write the observations of the fault scenarios")


@pytest.fixture
def ground(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """A relay without workers; indirect parametrization gives the keyword arguments of `Ground`."""
    with Ground(tmp_path, **getattr(request, "param", {})) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a scenario that passed without evidence; keep the row of one with evidence."""
    failed = True
    try:
        yield
        failed = False
    finally:
        marker, ground = item.get_closest_marker("scenario"), getattr(item, "funcargs", {}).get("ground")
        if marker and isinstance(ground, Ground):
            assert failed or ground.evidence, "void: the scenario has no evidence that its fault occurred"
            told, observed = marker.kwargs, "; ".join(ground.observations)
            row = [
                str(told["number"]),
                told["title"],
                told["bound"],
                f"**not kept yet**: {observed}" if failed else observed,
            ]
            item.user_properties.append((ROW, row))


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    path = config.getoption("--faults-table", default=None)
    if path:
        Path(path).write_text(HEAD + "".join(_lines(terminalreporter)), encoding="utf-8")
    yield


def _lines(terminal: pytest.TerminalReporter) -> list[str]:
    """Return the table's lines in the order of their numbers: of scenarios that passed or are expected to fail."""
    reports = [*terminal.stats.get("passed", ()), *terminal.stats.get("xfailed", ())]
    properties = [pair for report in reports for pair in report.user_properties]
    rows = sorted((row for name, row in properties if name == ROW), key=lambda row: int(row[0]))
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows]
