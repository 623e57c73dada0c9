"""Mutants of the relay: breaks one promise at a time in a copy, and requires that a test fails.

    python tests/faults/mutants.py                     all mutants: about twenty minutes
    python tests/faults/mutants.py no-fence order-lost only these
    python tests/faults/mutants.py --list              all mutants and their tests

Works on a copy of the tree. First the named tests must pass there, else their failures prove nothing; then each
mutant is applied, its tests run, and it is removed again. A mutant is *killed* if one of its tests fails; it
*survives* if all pass. A scenario that fails as void proves nothing; anything else (no test found, time-out) is an
error. Exit code 0 only if all were killed. Each text that a mutant replaces must occur exactly once in its file,
which tests/unit/test_mutants.py checks.
"""

# ruff: noqa: T201 - a script, and it prints

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[2]

#: Paths that a copy needs to run tests.
COPIED = ("relay", "workers", "tests", "config", "pyproject.toml")

#: Deadlines of the tests of one mutant, and of all tests without a mutant.
MUTANT_SECONDS = 300
BASELINE_SECONDS = 1200

#: Characters of a test's name and failure in the table.
FAILURE_CHARACTERS = 180

#: pytest's exit code when tests ran and some failed.
_TESTS_FAILED = 1


class EditError(Exception):
    """A mutant's text does not occur exactly once in its file."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A text that occurs once in a file, and its replacement."""

    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Replace the text in the tree at `root`, or raise `EditError`."""
        file = root / self.path
        text = file.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise EditError(f"{self.path} has {count} times, not once: {self.old!r}")
        file.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the relay, and the tests of which at least one must fail."""

    name: str
    what: str
    _: KW_ONLY
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Apply the edits to the tree at `root`."""
        for edit in self.edits:
            edit.apply(root)


class Result(StrEnum):
    KILLED = "killed"
    SURVIVED = "SURVIVED"
    VOID = "VOID"
    ERROR = "ERROR"


# Scenarios

CRASHES = "tests/faults/test_crashes.py"
HEALTH = "tests/faults/test_api_health.py"
OPERATORS = "tests/faults/test_operators.py"

WOKEN = f"{CRASHES}::test_a_worker_suspended_past_its_lease_cannot_commit"
EXPIRED_TOKEN = f"{HEALTH}::test_an_expired_token_stops_deliveries_and_uses_up_no_attempt"
REFUSED = f"{HEALTH}::test_refused_events_are_dead_at_once_and_missing_ones_are_retried_slowly"
RETRY_AFTER = f"{HEALTH}::test_no_worker_sends_before_the_end_of_retry_after"
STORM = f"{HEALTH}::test_a_storm_gets_few_probes_and_a_slow_start_after"
STILL = "tests/faults/test_redis.py::test_a_redis_that_does_not_answer_causes_no_repeat"
WAKEUPS = "tests/faults/test_wakeups.py::test_nothing_depends_on_a_wakeup"
FULL = f"{OPERATORS}::test_a_full_queue_refuses_each_producer_and_has_exactly_what_it_acknowledged"
REDRIVE = f"{OPERATORS}::test_a_redrive_moves_each_dead_letter_once_and_undoes_nothing"
PAUSE = f"{OPERATORS}::test_a_paused_environment_stays_paused_over_a_restart_and_keeps_the_order"
CANARY = "tests/faults/test_canary.py::test_the_token_leaks_nowhere"

# Tests for what no scenario shows, or none in short time

RUNS = "tests/integration/test_delivery_runs.py"
STALE_GUARD = "tests/integration/test_stale_guard.py"
MISHAPS = "tests/integration/test_delivery_mishaps.py"
DESTINATION = "tests/integration/test_delivery_destination.py"
LEASES = "tests/integration/test_scripts_leases.py"
COMMIT = "tests/integration/test_commit_delivery.py"
TRANSPORTS = "tests/integration/test_transports.py"

_FENCE = "if not holds_lease(lease_key, run_key, token) then"

_SEND = "        self._transport.send(Request(attempt, entry.body, key))\n"

_IN_ORDER = """\
            if entry.instance in self._blocked:
                self._block(entry)
            else:
                self._blocked[entry.instance] = deque()
                self._ready.append(entry)
"""

_SETTLED = """\
            blocked = self._blocked[entry.instance]
            if blocked:
                self._ready.append(blocked.popleft())
            else:
                del self._blocked[entry.instance]
"""

_RELEASED = """\
call('SET', wakeup_key, '1', 'PX', wakeup_ms)
return 1
"""

MUTANTS = (
    Mutant(
        "any-name",
        "a Redis or a broker with a certificate of another name is trusted",
        edits=(
            Edit(
                "relay/addresses.py",
                '"ssl_check_hostname": self.is_name_checked,',
                '"ssl_check_hostname": False,',
            ),
        ),
        tests=("tests/integration/test_tls.py::test_a_wrong_certificate_is_refused_and_nothing_is_sent",),
    ),
    Mutant(
        "celery-verifies-nothing",
        "Celery's connections get no TLS options of the relay's",
        edits=(Edit("workers/scheduling/app.py", "ssl=where.ssl if ssl is None else ssl", "ssl=False"),),
        tests=("tests/integration/test_tls.py::test_a_wrong_certificate_is_refused_and_nothing_is_sent",),
    ),
    Mutant(
        "commit-first",
        "an event is committed as delivered before it is POSTed",
        edits=(
            Edit(
                "workers/delivery/attempts.py",
                _SEND,
                f"        outbox.batch.deliver(entry, 0)\n        self._outboxes.commit()\n{_SEND}",
            ),
            Edit("workers/delivery/attempts.py", "            if not outbox.is_lost:  #", "            if False:  #"),
        ),
        tests=(f"{RUNS}::test_a_failing_instance_holds_up_itself_and_no_other", REFUSED),
    ),
    Mutant(
        "no-fence",
        "no script checks the lease's token",
        edits=(
            Edit("relay/queue/scripts/commit_delivery.lua", _FENCE, "if false then"),
            Edit("relay/queue/scripts/release_outbox.lua", _FENCE, "if false then"),
            Edit("relay/queue/scripts/claim.lua", _FENCE, "if false then"),
            Edit("relay/queue/scripts/defer.lua", _FENCE, "if false then"),
            Edit("relay/queue/scripts/handle.lua", _FENCE, "if false then"),
        ),
        tests=(WOKEN,),
    ),
    Mutant(
        "no-fence-at-commit",
        "only a commit does not check the lease's token",
        edits=(Edit("relay/queue/scripts/commit_delivery.lua", _FENCE, "if false then"),),
        tests=(f"{RUNS}::test_delivery_whose_lease_ran_out_commits_nothing",),
    ),
    Mutant(
        "run-mark-ignored",
        "a commit is refused once the lease expired, though no other run took over",
        edits=(
            Edit(
                "relay/queue/scripts/commit_delivery.lua",
                _FENCE,
                "if call('GET', lease_key) ~= token then",
            ),
        ),
        tests=(f"{COMMIT}::test_commit_is_recorded_after_the_lease_ran_out_if_no_other_run_acquired_it",),
    ),
    Mutant(
        "answers-unheard",
        "an answer received while the run waited for Redis counts as a time-out",
        edits=(
            Edit(
                "workers/delivery/transport.py",
                "        if now > self._late_from:\n            self._read_late_answers()\n",
                "",
            ),
        ),
        tests=(STILL,),
    ),
    Mutant(
        "sent-late",
        "a request whose connection was closed is sent at any later time",
        edits=(
            Edit(
                "workers/delivery/transport.py",
                "                left = handle.ends_at - time.monotonic()\n",
                "                left = max(handle.ends_at - time.monotonic(), 1.0)\n",
            ),
        ),
        tests=(f"{TRANSPORTS}::test_request_whose_kept_connection_had_ended_is_not_sent_after_its_time",),
    ),
    Mutant(
        "alone-in-each-outbox",
        "after a crash one entry of each outbox is in flight, instead of one of all",
        edits=(
            Edit(
                "workers/delivery/crash_search.py",
                "        while attempts.in_flight:\n            attempts.wait(WAIT_SECONDS)\n",
                "        return\n",
            ),
        ),
        tests=(f"{MISHAPS}::test_deadly_event_takes_none_of_other_environments_with_it",),
    ),
    Mutant(
        "hold-lost-with-redis",
        "a Retry-After received while Redis is unreachable is lost",
        edits=(Edit("workers/delivery/recovery.py", "            health.throttle()\n", ""),),
        tests=(f"{MISHAPS}::test_throttle_that_the_destination_asks_for_while_redis_is_away_holds_when_it_is_back",),
    ),
    Mutant(
        "retry-after-ignored",
        "Retry-After throttles no run",
        edits=(
            Edit(
                "workers/delivery/health.py",
                "if isinstance(outcome, Retry) and outcome.throttle_seconds is not None:",
                "if isinstance(outcome, Retry) and outcome.throttle_seconds is ...:",
            ),
        ),
        tests=(RETRY_AFTER,),
    ),
    Mutant(
        "hold-not-shared",
        "only the run that got Retry-After respects it",
        edits=(
            Edit(
                "relay/queue/scripts/change_health.lua",
                "    call('HSET', health_key, ARGV[at + WANTED_FIELD], ARGV[at + WANTED_VALUE])\n",
                "",
            ),
        ),
        tests=(RETRY_AFTER,),
    ),
    Mutant(
        "retry-on-400",
        "refused events are retried",
        edits=(
            Edit(
                "relay/destinations/deployment_api.py",
                "    (range(400, 500), _Class.REFUSED),\n",
                "    (range(400, 500), _Class.RETRY),\n",
            ),
        ),
        tests=(REFUSED,),
    ),
    Mutant(
        "attempts-burned",
        "a probe of an unhealthy destination uses up an attempt",
        edits=(
            Edit("workers/delivery/attempts.py", "outcome.uses_attempt and not is_probe", "outcome.uses_attempt"),
        ),
        tests=(f"{DESTINATION}::test_outage_uses_up_no_attempt_once_the_circuit_is_open", STORM),
    ),
    Mutant(
        "token-burns-attempts",
        "a refused token uses up an attempt",
        edits=(
            Edit(
                "workers/delivery/attempts.py",
                "entry = self._tried(entry, uses_attempt=False)",
                "entry = self._tried(entry)",
            ),
        ),
        tests=(f"{DESTINATION}::test_bad_token_stops_all_and_uses_up_nothing_until_it_is_rotated", EXPIRED_TOKEN),
    ),
    Mutant(
        "time-window-dedupe",
        "an event within ten seconds of its instance's last one is a duplicate",
        edits=(
            Edit(
                "workers/intake/deduplication.py",
                "    elif digest == state.digest:\n",
                "    elif digest == state.digest or enqueued_at - state.at < 10_000:\n",
            ),
        ),
        tests=("tests/acceptance/test_delivery.py::test_a_rollback_is_delivered_and_a_repeat_is_not",),
    ),
    Mutant(
        "stale-redrive",
        "a redriven event is not compared with events accepted since",
        edits=(
            Edit(
                "workers/intake/deduplication.py",
                "overtaken = max(state.arrival, (state.confirmed, 0)) > redriven.arrival",
                "overtaken = False",
            ),
        ),
        tests=(REDRIVE,),
    ),
    Mutant(
        "stale-guard-lost",
        "an event without a time does not keep the newest time of its instance",
        edits=(Edit("relay/queue/outbox.py", 'fields[b"newest"].decode() if b"newest" in fields else time', "time"),),
        tests=(f"{STALE_GUARD}::test_a_superseded_event_leaves_its_time",),
    ),
    Mutant(
        "repeat-forgotten",
        "a time that only a duplicate brought is undone by a dead letter",
        edits=(Edit("relay/queue/state.py", "[delivered.time, accepted.repeat_time or None]", "[delivered.time]"),),
        tests=(f"{STALE_GUARD}::test_a_time_that_only_a_repeat_told_stays_when_a_later_event_dies",),
    ),
    Mutant(
        "forged-redrive",
        "a producer's own field `redriven` is trusted",
        edits=(
            Edit(
                "workers/intake/read.py",
                "    forged = set(internal) - inbox.authentic(shard.client, shard.keys, internal)\n",
                "    forged: set[str] = set()\n",
            ),
        ),
        tests=("tests/integration/test_internal_fields.py::test_what_a_producer_writes_delivers_no_duplicate",),
    ),
    Mutant(
        "entry-id-as-key",
        "the idempotency key is the event's id, which two Redis servers may give to different events",
        edits=(Edit("workers/delivery/attempts.py", "entry.body, key)", "entry.body, entry.event_id)"),),
        tests=(
            "tests/integration/test_idempotency_keys.py::test_several_images_under_one_id_have_keys_of_their_own",
        ),
    ),
    Mutant(
        "redrives-together",
        "a second redrive does not wait for the first",
        edits=(Edit("relay/queue/redrive.py", "self._token, nx=True, px", "self._token, px"),),
        tests=(REDRIVE,),
    ),
    Mutant(
        "redrive-forgets",
        "a redriven event loses its first enqueued_at",
        edits=(
            Edit(
                "relay/queue/dead_letters.py",
                "    if last is not None:\n        return Redriven(last.times + 1,",
                "    if last is ...:\n        return Redriven(last.times + 1,",
            ),
        ),
        tests=("tests/integration/test_dead_letters.py::test_event_that_dies_again_keeps_its_history",),
    ),
    Mutant(
        "order-lost",
        "events of one instance are sent concurrently",
        edits=(
            Edit(
                "workers/delivery/batch.py",
                _IN_ORDER,
                "            self._blocked[entry.instance] = deque()\n            self._ready.append(entry)\n",
            ),
            Edit("workers/delivery/batch.py", _SETTLED, "            self._blocked.pop(entry.instance, None)\n"),
        ),
        tests=(PAUSE,),
    ),
    Mutant(
        "followers-forgotten",
        "events blocked by a retry are not deferred with it",
        edits=(
            Edit(
                "workers/delivery/batch.py",
                "deferred._replace(blocked=tuple(self._blocked.get(deferred.entry.instance, ())))",
                "deferred",
            ),
        ),
        tests=(f"{RUNS}::test_a_backlog_larger_than_a_batch_with_failures_all_over_is_delivered_in_order",),
    ),
    Mutant(
        "state-not-given-back",
        "a dead letter does not restore the state, so the same report later is a duplicate",
        edits=(
            Edit(
                "relay/queue/outbox.py",
                '_Restored(expected, state.encode() if state else b"", ',
                "_Restored(expected, expected, ",
            ),
        ),
        tests=(REDRIVE,),
    ),
    Mutant(
        "applied-twice",
        "a commit whose reply was lost counts again",
        edits=(
            Edit(
                "relay/queue/scripts/commit_delivery.lua",
                "local is_new = done_deleted + dead_deleted > 0",
                "local is_new = true",
            ),
        ),
        tests=(f"{COMMIT}::test_commit_applied_twice_does_nothing_more",),
    ),
    Mutant(
        "accepted-twice",
        "an acceptance whose reply was lost counts again",
        edits=(Edit("relay/queue/scripts/commit_intake.lua", "if deleted == 0 then", "if false then"),),
        tests=("tests/integration/test_scripts_intake.py::test_a_commit_that_is_applied_twice_does_nothing_more",),
    ),
    Mutant(
        "breaker-stays-open",
        "a success does not close the circuit breaker",
        edits=(Edit("workers/delivery/health.py", "            self._close()\n", "            pass\n"),),
        tests=(f"{DESTINATION}::test_deliveries_begin_slowly_after_an_outage", STORM),
    ),
    Mutant(
        "token-read-once",
        "a probe has the token that was read at the run's beginning",
        edits=(
            Edit("workers/delivery/health.py", "            self._runtime.reload_token()\n", "            pass\n"),
        ),
        tests=(f"{DESTINATION}::test_probe_carries_a_token_that_was_rotated_during_the_run",),
    ),
    Mutant(
        "token-told",
        "an answer that repeats the token is not redacted",
        edits=(
            Edit(
                "relay/redaction.py",
                "text = text.replace(token, MASK.encode())",
                "pass",
            ),
        ),
        tests=(CANARY,),
    ),
    Mutant(
        "silent-release",
        "an outbox that is released with more work sends no wake-up",
        edits=(Edit("relay/queue/scripts/release_outbox.lua", _RELEASED, "return 0\n"),),
        tests=(f"{LEASES}::test_released_outbox_with_more_to_do_counts_as_rung_for",),
    ),
    Mutant(
        "no-sweep",
        "a lost wake-up is never sent again",
        edits=(
            Edit(
                "relay/queue/scripts/wake.lua",
                "call('SET', KEYS[i + 1], '1', 'NX', 'PX', wakeup_ms)",
                "call('SET', KEYS[i + 1], '1', 'NX')",
            ),
        ),
        tests=(WAKEUPS,),
    ),
    Mutant(
        "no-limit",
        "the queue is never full",
        edits=(Edit("relay/queue/scripts/append.lua", "if waiting >= tonumber(ARGV[1]) then", "if false then"),),
        tests=(FULL,),
    ),
    Mutant(
        "no-watermark",
        "producers are accepted until Redis has no memory left for the workers",
        edits=(Edit("relay/queue/scripts/append.lua", "if used > tonumber(ARGV[2]) * most then", "if false then"),),
        tests=(
            "tests/integration/test_memory.py::test_producers_are_refused_at_the_watermark_and_taken_again_below_it",
        ),
    ),
    Mutant(
        "no-worker-crash",
        "an event that kills its process is retried without limit",
        edits=(Edit("workers/delivery/crash_search.py", "if deliveries >= leases.MAX_DEATHS:", "if False:"),),
        tests=(f"{MISHAPS}::test_event_that_kills_its_worker_is_a_dead_letter_and_the_others_arrive",),
    ),
    Mutant(
        "superseded-uncounted",
        "superseded events are not counted",
        edits=(
            Edit(
                "relay/queue/scripts/commit_delivery.lua",
                "  count('superseded', done_n - states_n)\n",
                "",
            ),
        ),
        tests=(f"{MISHAPS}::test_latest_of_an_instance_supersedes_undelivered_ones",),
    ),
    Mutant(
        "pause-ignored",
        "a paused environment's events are claimed and sent",
        edits=(
            Edit(
                "relay/queue/scripts/claim.lua",
                "local paused = call('HEXISTS', paused_key, environment)",
                "local paused = 0",
            ),
            Edit(
                "relay/queue/scripts/commit_delivery.lua",
                "local is_paused = call('HEXISTS', paused_key, environment)",
                "local is_paused = 0",
            ),
        ),
        tests=(PAUSE,),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; default: all")
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a mutant first")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}; see --list")
    chosen = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.what}")
            print("".join(f"    {test}\n" for test in mutant.tests), end="")
        return 0
    return _try(chosen, baseline=not options.no_baseline)


def _try(mutants: Sequence[Mutant], *, baseline: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="relay-mutants-") as directory:
        root = Path(directory)
        copy_tree(root)
        if baseline and not _is_green(root, dict.fromkeys(test for mutant in mutants for test in mutant.tests)):
            return 1
        results = [_test(mutant, root) for mutant in mutants]
    killed = results.count(Result.KILLED)
    print(f"{killed} of {len(mutants)} mutants killed")
    return int(killed < len(mutants))


def copy_tree(root: Path) -> None:
    """Copy the paths that tests need to `root`."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy2(source, root / name)


def _is_green(root: Path, tests: Iterable[str]) -> bool:
    began = time.monotonic()
    code, output = _run(root, [*tests], BASELINE_SECONDS)
    print(f"{'no mutant':<22} {'green' if code == 0 else 'RED':<9} {time.monotonic() - began:4.0f} s", flush=True)
    if code != 0:
        print(f"the tests fail without a mutant, so their failures prove nothing:\n{output[-4000:]}", file=sys.stderr)
    return code == 0


def _test(mutant: Mutant, root: Path) -> Result:
    began = time.monotonic()
    before = {edit.path: (root / edit.path).read_text(encoding="utf-8") for edit in mutant.edits}
    mutant.apply(root)
    try:
        code, output = _run(root, mutant.tests, MUTANT_SECONDS)
    finally:
        for path, text in before.items():
            (root / path).write_text(text, encoding="utf-8")
    by = next((line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    result = {0: Result.SURVIVED, _TESTS_FAILED: Result.KILLED}.get(code, Result.ERROR)
    if result is Result.KILLED and "AssertionError: void: " in output:
        result = Result.VOID
    failure = by.partition("::")[2]
    print(
        f"{mutant.name:<22} {result:<9} {time.monotonic() - began:4.0f} s  {failure[:FAILURE_CHARACTERS]}", flush=True
    )
    if result is Result.ERROR:
        print(output[-4000:], file=sys.stderr)
    return result


def _run(root: Path, tests: Sequence[str], timeout_seconds: float) -> tuple[int, str]:
    """Run tests in the copy until one fails; return pytest's exit code, -1 if they took too long, and its output."""
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    env = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "250",
    }  # room for the failure
    _check_that_it_is_the_copy(root, env)
    try:
        done = subprocess.run(
            argv,
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return -1, f"not done within {timeout_seconds} s\n{(expired.stdout or b'').decode(errors='replace')}"
    return done.returncode, done.stdout.decode(errors="replace")


def _check_that_it_is_the_copy(root: Path, env: dict[str, str]) -> None:
    asked = "import relay, workers; print(relay.__file__, workers.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd="/", env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    assert all(Path(path).is_relative_to(root) for path in told), f"the tests would run {told}, not the copy"


if __name__ == "__main__":
    sys.exit(main())
