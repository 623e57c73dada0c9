"""What is an AdmissionReview answered, and what does it report?

The answer is always yes: the relay watches what goes by and never stands in its way, whatever it is shown. What is
read of the request, by resource and operation:

    pods                      CREATE, UPDATE    what the specification pins by digest, and did not before
    pods/ephemeralcontainers  UPDATE            the same: `kubectl debug` adds a container to a pod that runs
    pods/status               UPDATE            what runs, and did not before
    anything else                               nothing

The request's shape is that of https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
(`admission.k8s.io/v1`; `v1beta1`, which Kubernetes before 1.22 may send, differs in nothing that is read or written).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from relay.kubernetes import json_access
from relay.kubernetes.pod import PodReading, read_pinned, read_pod
from relay.kubernetes.skip_reason import Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.events.event import DeploymentEvent
    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming

#: The versions that are answered in kind; whatever claims another is answered in the first.
_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")

#: Subresource and operation → what the request reports.
_READERS = {
    ("", "CREATE"): read_pinned,
    ("", "UPDATE"): read_pinned,
    ("ephemeralcontainers", "UPDATE"): read_pinned,
    ("status", "UPDATE"): read_pod,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A review's answer, and what it reports."""

    #: An AdmissionReview, to be sent as JSON with HTTP 200.
    response: Mapping[str, Any]
    events: tuple[DeploymentEvent, ...] = ()
    skipped: Counter[Skipped] = field(default_factory=Counter)


def judge(body: bytes, naming: Naming, nodes: Mapping[str, Platform] | None = None) -> Review:
    """Answer a request's body and read what it reports; never raises. The body's size is the caller's to bound.

    A review does not carry its namespace's labels: a template that asks for one skips all of it. Nor does it carry
    its node's platform: `nodes` are those of the cluster's nodes, if a watcher publishes them.
    """
    review = _decoded(body)
    reading = _read(review, naming, nodes)
    return Review(response=_allow(review), events=reading.events, skipped=reading.skipped)


def allow(body: bytes) -> Mapping[str, Any]:
    """Answer a request's body, and no more; its beginning is enough, if the uid is in that."""
    return _allow(_decoded(body, may_be_cut=True))


def _decoded(body: bytes, *, may_be_cut: bool = False) -> object:
    try:
        return from_json(body, allow_partial=may_be_cut)
    except ValueError:
        return None


def _allow(review: object) -> Mapping[str, Any]:
    version = json_access.text(review, "apiVersion")
    return {
        "apiVersion": version if version in _VERSIONS else _VERSIONS[0],
        "kind": "AdmissionReview",
        "response": {"uid": json_access.text(review, "request", "uid"), "allowed": True},
    }


def _read(review: object, naming: Naming, nodes: Mapping[str, Platform] | None) -> PodReading:
    request = json_access.part(review, "request")
    if skipped := _skip(request):
        return PodReading(skipped=Counter([skipped]))
    return _READERS[_asked(request)](
        _pod(request), naming, before=json_access.part(request, "oldObject"), nodes=nodes
    )


def _skip(request: Mapping[str, Any]) -> Skipped | None:
    if not request:
        return Skipped.NOT_A_REVIEW
    if (json_access.text(request, "resource", "group"), json_access.text(request, "resource", "resource")) != (
        "",
        "pods",
    ):
        return Skipped.NOT_A_POD
    if request.get("dryRun"):
        return Skipped.DRY_RUN
    return None if _asked(request) in _READERS else Skipped.OTHER_OPERATION


def _asked(request: Mapping[str, Any]) -> tuple[str, str]:
    return json_access.text(request, "subResource"), json_access.text(request, "operation")


def _pod(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request's object; the request itself may know better where and what it is."""
    pod = json_access.part(request, "object")
    metadata = json_access.part(pod, "metadata")
    known = {key: json_access.text(metadata, key) or json_access.text(request, key) for key in ("namespace", "name")}
    return {**pod, "metadata": {**metadata, **known}}
