"""The platform of a pod: its node's, or the one that its specification pins. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.errors import InvalidEvent
from relay.events.platform import Platform, normalise, platform_of
from relay.kubernetes import json_access

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Names of a node's labels, current and old.
_OS_LABELS = ("kubernetes.io/os", "beta.kubernetes.io/os")
_ARCHITECTURE_LABELS = ("kubernetes.io/arch", "beta.kubernetes.io/arch")

_REQUIRED_TERMS = ("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")


def platform_of_node(node: Mapping[str, Any]) -> Platform | None:
    """Return the platform in a node's `status.nodeInfo`."""
    info = json_access.part(node, "status", "nodeInfo")
    return _platform(json_access.text(info, "operatingSystem"), json_access.text(info, "architecture"))


def platform_of_pod(
    pod: Mapping[str, Any], node: Platform | None, nodes: Mapping[str, Platform] | None = None
) -> Platform | None:
    """Return the platform of the pod's node, if it is known, else the one that its specification pins.

    A pinned `linux` without an architecture is dropped. It is the default anyway, and an event with a part of its
    platform does not get the rest from its environment's rule (`Defaults.complete`).

    If the cluster's `nodes` are known, no part is guessed: None means that the pod's node is not among them, and its
    specification does not pin its platform. A pinned part (such as Windows) suffices if all nodes that match it have
    the same platform.
    """
    if node is not None:
        return node
    spec = json_access.part(pod, "spec")
    if nodes and (known := nodes.get(json_access.text(spec, "nodeName"))):
        return known
    os = _selected(spec, _OS_LABELS) or json_access.text(spec, "os", "name")
    pinned = _platform(os, _selected(spec, _ARCHITECTURE_LABELS)) or Platform()
    if pinned.os == "linux" and pinned.architecture is None:
        pinned = Platform()
    if nodes is None or pinned.is_complete:
        return pinned
    if pinned == Platform():
        return None
    fitting = {
        each
        for each in nodes.values()
        if pinned.os in {None, each.os} and pinned.architecture in {None, each.architecture}
    }
    return fitting.pop() if len(fitting) == 1 else None


def _selected(spec: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the only value of a label that the pod's nodes may have, else ""."""
    for name in names:
        if value := json_access.text(spec, "nodeSelector", name):
            return value
        required = list(_required(spec, name))
        if required and all(required) and len(set(required)) == 1:
            return required[0]
    return ""


def _required(spec: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the only value, else "", that each term of the required affinity allows; the terms are alternatives."""
    for term in json_access.each(spec, *_REQUIRED_TERMS):
        asked = (
            json_access.texts(expression, "values")
            for expression in json_access.each(term, "matchExpressions")
            if json_access.text(expression, "key") == name and json_access.text(expression, "operator") == "In"
        )
        yield next((values[0] for values in asked if len(values) == 1), "")


def _platform(os: str, architecture: str) -> Platform | None:
    try:
        platform = platform_of(*normalise(os, architecture))
    except InvalidEvent:
        return None
    return platform if platform.os or platform.architecture else None
