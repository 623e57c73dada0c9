"""A metrics exposition parsed as Prometheus does, and its lint errors as of promtool."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client import Metric

#: Labels, and the bound of their number of values.
BOUNDED = {
    "environment": "metrics.environments",
    "stream": "three",
    "destination": "the configuration",
    "reason": "an enumeration",
    "state": "an enumeration",
    "outcome": "an enumeration",
    "code": "HTTP's statuses",
    "why": "an enumeration",
    "worker": "workers that live",
    "le": "the buckets",
    "version": "one",
    "python": "one",
    "redis": "one",
    "appendonly": "two",
    "appendfsync": "three",
    "maxmemory_policy": "eight",
}

#: Units that are not Prometheus's base units, and words that repeat TYPE.
_NOT_IN_A_NAME = (
    "milliseconds",
    "minutes",
    "hours",
    "percent",
    "kilobytes",
    "megabytes",
    "counter",
    "gauge",
    "histogram",
)


class Exposed:
    """The samples of one scrape."""

    def __init__(self, text: bytes | str) -> None:
        self.text = text.decode() if isinstance(text, bytes) else text
        self.families: list[Metric] = list(text_string_to_metric_families(self.text))
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples[(name, *sorted(labels.items()))]

    def of(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the samples of a name by their labels."""
        return {key[1:]: value for key, value in self.samples.items() if key[0] == name}

    def total(self, name: str, **labels: str) -> float:
        """Add up the samples that have these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(value for found, value in self.of(name).items() if wanted <= set(found))


def lint(text: str) -> list[str]:
    """Return the errors of `promtool check metrics`, and of further rules."""
    faults = []
    exposed = Exposed(text)
    samples = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    if samples != len(exposed.samples):
        faults.append(f"{samples - len(exposed.samples)} samples come twice")
    for family in exposed.families:
        # The parser takes `_total` off a counter's name, and the text has it.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not re.search(rf"^# HELP {name} [A-Z0-9].*\.$", text, re.MULTILINE):
            faults.append(f"{name} has no HELP that is a sentence")
        if not re.search(rf"^# TYPE {name} {family.type}$", text, re.MULTILINE):
            faults.append(f"{name} has no TYPE, or is a counter without _total")
        faults += [f"{name}: {fault}" for fault in _name_faults(name, family.type)]
        for sample in family.samples:
            faults += [f"{name}: no bound is known of {label}" for label in sample.labels.keys() - BOUNDED.keys()]
            if family.type in {"counter", "histogram"} and sample.value < 0:
                faults.append(f"{name} is below 0")
        if family.type == "histogram":
            faults += [f"{name}: {fault}" for fault in _histogram_faults(family)]
    return faults


def _name_faults(name: str, kind: str) -> list[str]:
    faults = []
    if not re.fullmatch(r"relay(_[a-z]+)+", name):
        faults.append("is not in snake case, or not ours")
    faults += [f"says {word}" for word in _NOT_IN_A_NAME if word in name]
    if (kind == "counter") != name.endswith("_total"):
        faults.append("a counter ends in _total, and nothing else does")
    if kind != "histogram" and name.endswith(("_bucket", "_count", "_sum")):
        faults.append("has a histogram's ending")
    if kind == "histogram" and not name.endswith("_seconds"):
        faults.append("has no unit")
    if "timestamp" in name and not name.endswith("_timestamp_seconds"):
        faults.append("is a time, and not in seconds")
    return faults


def _histogram_faults(family: Metric) -> list[str]:
    faults = []
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    others: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in family.samples:
        labels = tuple(sorted(item for item in sample.labels.items() if item[0] != "le"))
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
        else:
            others[sample.name, labels] = sample.value
    for labels, found in buckets.items():
        if found != sorted(found) or [n for _, n in found] != sorted(n for _, n in found):
            faults.append("its buckets do not grow")
        if found[-1][0] != float("inf") or others.get((f"{family.name}_count", labels)) != found[-1][1]:
            faults.append("its count is not its last bucket's, +Inf")
        if (f"{family.name}_sum", labels) not in others:
            faults.append("it has no sum")
    return faults
