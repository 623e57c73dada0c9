"""Check the promises against what producers were told and what the API saw, never against the relay's code.

A producer notes a report *after* the relay acknowledged it (E), and one whose acknowledgement never came though bytes
may have gone out (U). Each check raises an AssertionError that gives counts and examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from faults.api import Api, Attempt

#: Ids that a message shows of each kind.
EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One call of a producer. `instance` as the API spells it; `time` in any unit, as long as it is one."""

    event_id: str
    instance: str
    digest: str
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """The relay's own counters, and the ids of its dead letters. `dead` counts those redriven or dropped, too."""

    added: int
    redriven: int
    dropped: int
    delivered: int
    duplicate: int
    stale: int
    superseded: int
    dead: int
    waiting: int
    dead_ids: Sequence[str]

    @property
    def unaccounted(self) -> tuple[int, int]:
        """Events, and dead letters, that are in no count or in two."""
        return rules.unaccounted(asdict(self)), self.dead - self.redriven - self.dropped - len(self.dead_ids)


class Oracle:
    """E and U of one scenario, and the checks of them."""

    def __init__(self, journal: Path) -> None:
        self.acknowledged: list[Report] = []
        self.uncertain: list[Report] = []
        #: Entries put into the inbox that no producer of ours would send: dead letters, by their inbox ids.
        self.malformed: list[str] = []
        #: Ids of dead letters that were redriven after something newer of their instance was accepted: stale.
        self.overtaken: list[str] = []
        self._journal = journal

    def note(self, reports: Iterable[Report], *, acknowledged: bool = True) -> None:
        """Note what a producer did. The reports of one instance must come in the order of their calls."""
        reports = list(reports)
        (self.acknowledged if acknowledged else self.uncertain).extend(reports)
        with self._journal.open("a") as file:
            file.writelines(f"{'E' if acknowledged else 'U'}\t{r.event_id}\t{r.instance}\n" for r in reports)

    @property
    def added(self) -> int:
        """Entries that are in the inbox or were: at least, if any report is uncertain."""
        return len(self.acknowledged) + len(self.malformed)

    def check_conservation(self, api: Api, outcomes: Outcomes, *, superseded: Collection[str] = ()) -> None:
        """E = delivered ⊎ dead ⊎ duplicate ⊎ stale ⊎ superseded; missing 0; nothing at the API beyond E and U."""
        changes = {each.event_id for each, decision in self._decisions() if decision.is_delivered}
        got, dead, overtaken = set(api.processed_ids()), set(outcomes.dead_ids), set(self.overtaken)
        seen = {attempt.event_id for attempt in api.attempts}
        known = {report.event_id for report in (*self.acknowledged, *self.uncertain)}
        ended = got | dead | overtaken | set(superseded)
        _none("events that were acknowledged and are lost", changes - ended)
        _none("events at the API that no producer reported", seen - known)
        _none("superseded events that were delivered", got & set(superseded))
        _none("redriven events that undid a newer one", got & overtaken)
        if not self.uncertain:
            _none("duplicate or stale events at the API", seen - changes)

    def check_bodies(self, api: Api) -> None:
        """One body for an id, and it is the one that was reported."""
        hashes = defaultdict(set)
        for attempt in api.attempts:
            hashes[attempt.event_id].add(attempt.body_hash)
        _none("ids with several bodies", [name for name, bodies in hashes.items() if len(bodies) > 1])
        reported = {(r.event_id, r.instance, r.digest) for r in (*self.acknowledged, *self.uncertain)}
        wrong = {a.event_id for a in api.attempts if (a.event_id, a.instance, a.digest) not in reported}
        _none("ids with another event's body", wrong)

    def check_repeats(self, api: Api, bound: int) -> None:
        """Events were taken beyond their first time no more often than the bound says."""
        repeats = api.repeats()
        if repeats > bound:
            copies = [name for name, n in api.processed_ids().most_common(EXAMPLES) if n > 1]
            raise AssertionError(f"{repeats} repeats, and {bound} is the bound: {copies}")

    def check_order(self, api: Api) -> None:
        """Of an instance, n+1 is first tried after the final answer of n, and n not again after n+1 was answered."""
        place: dict[str, int] = {}
        for number, report in enumerate((*self.acknowledged, *self.uncertain)):
            place.setdefault(report.event_id, number)
        uncertain = {report.event_id for report in self.uncertain}
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in api.attempts:
            if attempt.event_id in place and attempt.event_id not in uncertain:  # their place is unknown
                attempts[attempt.instance].append(attempt)
        faults = []
        for instance in attempts.values():
            for one, other in pairwise(instance):
                if place[other.event_id] < place[one.event_id]:
                    faults.append(f"{other.event_id} was tried after its successor {one.event_id}")
                elif other.event_id != one.event_id and not _is_over(one, before=other):
                    faults.append(f"{other.event_id} was tried while {one.event_id} was under way")
        _none("breaches of an instance's order", faults)

    def check_truth(self, outcomes: Outcomes, *, superseded: int = 0) -> None:
        """Check that the relay's counters equal ours; with uncertain reports, each of those may count once more."""
        decided = Counter(decision for _, decision in self._decisions())
        changes = sum(count for decision, count in decided.items() if decision.is_delivered)
        dead = len(outcomes.dead_ids)
        ours = Counter(
            delivered=changes - (dead - len(self.malformed)) - superseded - len(self.overtaken),
            duplicate=decided[rules.Decision.DUPLICATE],
            stale=decided[rules.Decision.STALE] + len(self.overtaken),
            superseded=superseded,
        )
        theirs = Counter({name: getattr(outcomes, name) for name in ours})
        assert (outcomes.waiting, *outcomes.unaccounted) == (0, 0, 0), f"the counters do not add up: {outcomes}"
        slack = len(self.uncertain)
        assert ours.total() <= theirs.total() <= ours.total() + slack, f"counters {theirs}, oracle {ours}"
        wrong = {name: (theirs[name], ours[name]) for name in ours if abs(theirs[name] - ours[name]) > slack}
        assert not wrong, f"the counters and the oracle differ (theirs, ours): {wrong}"

    def _decisions(self) -> list[tuple[Report, rules.Decision]]:
        """Return the decision on each acknowledged report, as if only the API's refusals made dead letters."""
        made = [
            rules.Report(event_id=report.event_id, digest=report.digest, rank=(number, 0), time=report.time)
            for number, report in enumerate(self.acknowledged)
        ]
        instances = [report.instance for report in self.acknowledged]
        return list(zip(self.acknowledged, rules.decisions(zip(instances, made, strict=True)), strict=True))


def _is_over(attempt: Attempt, *, before: Attempt) -> bool:
    """Return whether an attempt was over for the client: one that it left is, even if the API saw that late."""
    return attempt.ended == "left" or (attempt.ended_at is not None and attempt.ended_at <= before.read_at)


def _none(what: str, faults: Collection[str]) -> None:
    if faults:
        raise AssertionError(f"{len(faults)} {what}, such as {sorted(faults)[:EXAMPLES]}")
