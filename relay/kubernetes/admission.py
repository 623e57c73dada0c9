"""AdmissionReviews: the response, which always allows, and the events.

Events by resource and operation:

    pods                      CREATE, UPDATE    images that the specification pins by digest, and did not before
    pods/ephemeralcontainers  UPDATE            the same: `kubectl debug` adds a container to a running pod
    pods/status               UPDATE            images that run, and did not before
    anything else                               none

The request has the form of https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
(`admission.k8s.io/v1`; `v1beta1`, which Kubernetes before 1.22 may send, has the same fields here).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from relay.kubernetes import json_access
from relay.kubernetes.pod import PodReading, read_pinned, read_pod
from relay.kubernetes.skip_reason import SkipReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.events.event import DeploymentEvent
    from relay.events.platform import Platform
    from relay.kubernetes.naming import Naming

#: The supported versions; a request of another version is answered in the first.
_VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")

#: The reader of the pod by subresource and operation.
_READERS = {
    ("", "CREATE"): read_pinned,
    ("", "UPDATE"): read_pinned,
    ("ephemeralcontainers", "UPDATE"): read_pinned,
    ("status", "UPDATE"): read_pod,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A review's response and events."""

    #: An AdmissionReview, to be sent as JSON with HTTP 200.
    response: Mapping[str, Any]
    events: tuple[DeploymentEvent, ...] = ()
    skipped: Counter[SkipReason] = field(default_factory=Counter)


def read_review(body: bytes, naming: Naming, nodes: Mapping[str, Platform] | None = None) -> Review:
    """Return the response to a request's body, and its events; never raise. The caller limits the body's size.

    A review has no namespace labels, so a template that uses one skips the whole review. Nor has it its node's
    platform: `nodes` are the platforms of the cluster's nodes, if a watcher publishes them.
    """
    review = _decoded(body)
    reading = _read(review, naming, nodes)
    return Review(response=_allow(review), events=reading.events, skipped=reading.skipped)


def allow(body: bytes) -> Mapping[str, Any]:
    """Return only the response to a request's body; its beginning suffices if it has the uid."""
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
    return _READERS[_operation(request)](
        _pod(request), naming, before=json_access.part(request, "oldObject"), nodes=nodes
    )


def _skip(request: Mapping[str, Any]) -> SkipReason | None:
    if not request:
        return SkipReason.NOT_A_REVIEW
    if (json_access.text(request, "resource", "group"), json_access.text(request, "resource", "resource")) != (
        "",
        "pods",
    ):
        return SkipReason.NOT_A_POD
    if request.get("dryRun"):
        return SkipReason.DRY_RUN
    return None if _operation(request) in _READERS else SkipReason.OTHER_OPERATION


def _operation(request: Mapping[str, Any]) -> tuple[str, str]:
    return json_access.text(request, "subResource"), json_access.text(request, "operation")


def _pod(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the request's object, with namespace and name of the request where the object has none."""
    pod = json_access.part(request, "object")
    metadata = json_access.part(pod, "metadata")
    known = {key: json_access.text(metadata, key) or json_access.text(request, key) for key in ("namespace", "name")}
    return {**pod, "metadata": {**metadata, **known}}
