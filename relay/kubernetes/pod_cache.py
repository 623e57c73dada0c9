"""What did each pod run when it was last read? As little as is needed to see what changed. Pure.

A pod's status changes with each probe, and only now and then what it runs. What is kept of a pod is JSON of some two
hundred bytes for each of its containers, until the pod is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json, to_json

from relay.kubernetes import json_access
from relay.kubernetes.workload import Workload, workload_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS = ("initContainers", "containers", "ephemeralContainers")


class _Mark(NamedTuple):
    """What tells pods of a workload apart."""

    #: ISO 8601, as Kubernetes writes it: sorts as time.
    created: str
    #: Hashes of what its containers run, by their names.
    images: Mapping[str, int]

    def is_undone(self, left: _Mark) -> bool:
        """Tell whether a pod that is left is older, and a container that both have runs something else there."""
        return left.created < self.created and any(
            self.images.get(name, image) != image for name, image in left.images.items()
        )


class Memory:
    """Pods by uid."""

    def __init__(self) -> None:
        self._pods: dict[str, bytes] = {}
        self._workloads: dict[tuple[str, Workload], dict[str, _Mark]] = {}

    def __len__(self) -> int:
        return len(self._pods)

    def before(self, pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what `read_pod` takes as `before`."""
        kept = self._pods.get(_uid(pod))
        return from_json(kept) if kept else None

    def remember(self, pod: Mapping[str, Any]) -> None:
        """Keep what the pod runs."""
        self._pods[_uid(pod)] = to_json(_gist(pod))
        if images := _images(pod):
            mark = _Mark(json_access.text(pod, "metadata", "creationTimestamp"), images)
            self._workloads.setdefault(_workload(pod), {})[_uid(pod)] = mark

    def forget(self, pod: Mapping[str, Any]) -> bool:
        """Drop a pod that is gone; tell whether it leaves older ones of its workload that run something else instead.

        Then its rollout was undone: what it said is not so any more, and those that are left said theirs long ago.
        Pods that are runs end by themselves: no rollout is undone by that.
        """
        self._pods.pop(_uid(pod), None)
        workload = self._workloads.get(_workload(pod), {})
        gone = workload.pop(_uid(pod), None)
        if not workload:
            self._workloads.pop(_workload(pod), None)
        return gone is not None and not workload_of(pod).is_run and any(map(gone.is_undone, workload.values()))


def _gist(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "metadata": {"uid": _uid(pod)},
        "spec": {
            kind: [{"name": json_access.text(each, "name")} for each in json_access.each(pod, "spec", kind)]
            for kind in _KINDS
        },
        "status": {
            _statuses(kind): [_status(each) for each in json_access.each(pod, "status", _statuses(kind))]
            for kind in _KINDS
        },
    }


def _status(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "name": json_access.text(status, "name"),
        "imageID": json_access.text(status, "imageID"),
        "state": {key: {} for key in json_access.part(status, "state")},
        "lastState": {key: {} for key in json_access.part(status, "lastState")},
    }


def _statuses(kind: str) -> str:
    return f"{kind.removesuffix('s')}Statuses"


def _images(pod: Mapping[str, Any]) -> Mapping[str, int]:
    """Return what its containers run, by their names, as far as they started; what was added to debug it aside."""
    statuses = (each for kind in _KINDS[:2] for each in json_access.each(pod, "status", _statuses(kind)))
    named = ((json_access.text(each, "name"), json_access.text(each, "imageID")) for each in statuses)
    return {name: hash(image) for name, image in named if image}


def _workload(pod: Mapping[str, Any]) -> tuple[str, Workload]:
    return json_access.text(pod, "metadata", "namespace"), workload_of(pod)


def _uid(pod: Mapping[str, Any]) -> str:
    return json_access.text(pod, "metadata", "uid")
