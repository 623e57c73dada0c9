"""`relay demo`: replay the log of an estate, and account for every event."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay.cli.up import interrupt_on_sigterm, start_flower, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

    from relay.demo.run import Demo, Progress, Result
    from relay.processes.stack import Stack

#: Between two lines of progress, without a terminal.
LINE_SECONDS = 2.0


def demo(
    *,
    rate: Annotated[float, typer.Option(min=0, help="Events a second from all producers; 0: unbounded.")] = 2000,
    outage: Annotated[float, typer.Option(min=0, help="Seconds for which the API fails in the middle.")] = 4,
    kill_worker: Annotated[bool, typer.Option("--kill-worker", help="Also SIGKILL a worker.")] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep logs and data in this directory.")] = None,
    flower: Annotated[bool, typer.Option("--flower", help="Also start Flower, on a free port.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running until Ctrl-C.")] = False,
) -> None:
    """Show the relay at work, then account for every event.

    Starts a private Redis, two Celery workers and a sandbox API, and replays the log of an estate (clusters, rolling
    updates, restarts, snapshots, rollbacks, malformed entries) from four producers at once. In the middle the API
    fails for a while. At the end every event must be delivered, a duplicate, stale, or a dead letter, as the
    simulation of the estate expects; exit code 0 only then. Settings and environment variables are ignored.

    \b
    Examples:
      relay demo
      relay demo --rate 0 --outage 0
      relay demo --kill-worker --logs /tmp/relay-demo
      relay demo --flower --keep
    """  # noqa: D301 - \b keeps typer from joining the lines
    from rich.console import Console  # noqa: PLC0415 - only this command needs it

    from relay.demo.run import Demo, Plan, forget_settings  # noqa: PLC0415 - the same

    forget_settings(os.environ)
    interrupt_on_sigterm()
    console = Console()
    plan = Plan(events_per_second=rate, outage_seconds=outage, kill_worker=kill_worker)
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as temporary:
        try:
            with Demo(logs or Path(temporary), plan) as run:
                if flower:
                    start_flower(run.stack, 0)
                _show_live(console, run) if console.is_terminal else _show_lines(console, run)
                result = run.result
                if result is not None:
                    _show_result(console, result)
                    if keep:
                        _keep(console, run.stack)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None  # its processes have stopped
    sys.exit(1 if result is None or result.differences else 0)


def _keep(console: Console, stack: Stack) -> None:
    """Wait for Ctrl-C, or for one of the processes to end."""
    console.print(
        f"\nEverything keeps running: export RELAY_REDIS_URL={stack.redis_url}", highlight=False, soft_wrap=True
    )
    console.print("Ctrl-C stops it.")
    while stack.wait_any(0):
        pass  # the producers, which have ended
    with contextlib.suppress(KeyboardInterrupt):
        ended = wait_for_end(stack)
        console.print(f"{ended}; its output is in {stack.log_path(ended.name)}", highlight=False, soft_wrap=True)


def _show_live(console: Console, run: Demo) -> None:
    from rich.live import Live  # noqa: PLC0415 - for terminals only

    events = run.watch()
    first = _print_start(console, events)
    with Live(_progress_table(first), console=console, refresh_per_second=8) as live:
        for progress in events:
            if not isinstance(progress, str):
                live.update(_progress_table(progress))


def _show_lines(console: Console, run: Demo) -> None:
    events = run.watch()
    printed = -LINE_SECONDS
    _print_start(console, events)
    for progress in events:
        if not isinstance(progress, str) and progress.seconds - printed >= LINE_SECONDS:
            printed = progress.seconds
            counters = progress.counters
            console.print(
                f"{progress.seconds:5.1f} s  added {counters.added:>6,}  delivered {counters.delivered:>6,}  "
                f"duplicate {counters.duplicate:>6,}  waiting {counters.waiting:>5,}  {progress.note}",
                highlight=False,
                soft_wrap=True,
            )


def _print_start(console: Console, events: Iterator[Progress | str]) -> Progress:
    for event in events:
        if not isinstance(event, str):
            return event
        console.print(event, highlight=False, soft_wrap=True)
    raise AssertionError("a demo yields its progress at least once")


def _progress_table(progress: Progress) -> Table:
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - for terminals only
    from rich.table import Table  # noqa: PLC0415 - the same

    counters = progress.counters
    table = Table.grid(padding=(0, 2))
    rows = [
        ("added", counters.added, ""),
        ("delivered", counters.delivered, "green"),
        ("duplicate", counters.duplicate, "dim"),
        ("stale", counters.stale, "dim"),
        ("dead", counters.dead, "red"),
        ("waiting", counters.waiting, "yellow"),
    ]
    for name, value, style in rows:
        bar = ProgressBar(total=progress.total, completed=value, width=40, complete_style=style or "blue")
        table.add_row(name, f"{value:,}", bar)
    table.add_row("retries", f"{counters.retries:,}", f"[yellow]{progress.note}[/yellow]")
    table.add_row("time", f"{progress.seconds:.1f} s", "")
    return table


def _show_result(console: Console, result: Result) -> None:
    from rich.table import Table  # noqa: PLC0415 - at the end only

    from relay.demo.estate import Outcome  # noqa: PLC0415 - the same

    counters, expected = result.counters, result.expected
    table = Table(title="Outcome of every event", title_justify="left")
    table.add_column("outcome")
    table.add_column("events", justify="right")
    table.add_column("expected", justify="right")
    dead = expected[Outcome.INVALID]
    for name, found, wanted in (
        ("delivered", counters.delivered, expected[Outcome.DELIVERED]),
        ("duplicate", counters.duplicate, expected[Outcome.DUPLICATE]),
        ("stale", counters.stale, expected[Outcome.STALE]),
        *((f"dead: {reason}", count, dead) for reason, count in sorted(counters.dead_by_reason.items())),
        ("waiting", counters.waiting, 0),
        ("all added", counters.added, sum(expected.values())),
    ):
        table.add_row(name, f"{found:,}", f"{wanted:,}", style="bold red" if found != wanted else None)
    console.print()
    console.print(table)
    for line in _figures(result):
        console.print(line, highlight=False, soft_wrap=True)
    for difference in result.differences:
        console.print(f"NOT AS EXPECTED  {difference}", style="bold red", highlight=False)
    if not result.differences:
        console.print("Every event is accounted for.", style="bold green")


def _figures(result: Result) -> list[str]:
    from relay.queue.latency import percentile  # noqa: PLC0415 - at the end only

    counters = result.counters
    shares = [(f"p{share * 100:g}", percentile(counters.latency, share)) for share in (0.5, 0.9, 0.99)]
    latency = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in shares if seconds is not None)
    return [
        (
            f"API: {result.api_distinct:,} distinct events, {result.api_repeats:,} repeated, "
            f"{result.api_refusals:,} answered with an error and tried again"
        ),
        (
            f"Rates: {counters.added / result.producing_seconds:,.0f} events/s added, "
            f"{counters.delivered / result.seconds:,.0f} POSTs/s delivered, {result.seconds:.1f} s in all"
        ),
        f"From Redis to the API's answer, outage included: {latency}",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
