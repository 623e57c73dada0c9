"""Whose pod is it? The workload that people know by name, not the one in between that made the pod.

A pod names its controller in `metadata.ownerReferences`, and no more than that one. Two levels up is read off the
names, as the controllers compose them:

- a ReplicaSet of a Deployment is `<deployment>-<pod-template-hash>`, and its pods carry the hash as a label
  (kubernetes/kubernetes `pkg/controller/deployment/sync.go`, `getNewReplicaSet`); Argo Rollouts does the same
  with a label of its own;
- a Job of a CronJob is `<cronjob>-<unix time>`, in minutes, and in seconds before Kubernetes 1.21
  (`pkg/controller/cronjob/utils.go`, `getJobName`);
- a ReplicationController of an OpenShift DeploymentConfig is named in an annotation of its pods;
- the mirror of a static pod is `<pod>-<node>` (`pkg/kubelet/config/common.go`, `generatePodName`).

Not promised: that a Job that somebody called `backup-20240131` is not taken for a run of a CronJob `backup`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay.kubernetes import shape

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIRROR = "kubernetes.io/config.mirror"
_DEPLOYMENT_CONFIG = "openshift.io/deployment-config.name"
#: The label that holds the hash → the kind whose ReplicaSet it is.
_HASHES = {"pod-template-hash": "Deployment", "rollouts-pod-template-hash": "Rollout"}
#: Minutes since 1970 have eight digits from 1989 on, seconds ten from 2001 on.
_SCHEDULED = re.compile(r"(.+)-[0-9]{8,10}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a pod belongs to; a pod of nobody belongs to itself."""

    kind: str
    #: "" if nothing says it.
    name: str


def workload_of(pod: Mapping[str, Any]) -> Workload:
    """Read a pod's workload off its metadata."""
    annotations = shape.labels(pod, "metadata", "annotations")
    if _MIRROR in annotations:
        node = shape.text(pod, "spec", "nodeName")
        return Workload(kind="Pod", name=_pod_name(pod).removesuffix(f"-{node}"))
    owner = next(
        (each for each in shape.each(pod, "metadata", "ownerReferences") if each.get("controller") is True), {}
    )
    kind, name = shape.text(owner, "kind"), shape.text(owner, "name")
    if not kind or not name:
        return Workload(kind="Pod", name=_pod_name(pod))
    match kind:
        case "ReplicaSet":
            return _above_replica_set(name, shape.labels(pod, "metadata", "labels"))
        case "Job" if scheduled := _SCHEDULED.fullmatch(name):
            return Workload(kind="CronJob", name=scheduled[1])
        case "ReplicationController" if config := annotations.get(_DEPLOYMENT_CONFIG):
            return Workload(kind="DeploymentConfig", name=config)
        case _:
            return Workload(kind=kind, name=name)


def _above_replica_set(name: str, labels: Mapping[str, str]) -> Workload:
    for label, kind in _HASHES.items():
        above = name.removesuffix(f"-{labels[label]}") if labels.get(label) else name
        if above and above != name:
            return Workload(kind=kind, name=above)
    return Workload(kind="ReplicaSet", name=name)


def _pod_name(pod: Mapping[str, Any]) -> str:
    """Return a pod's name, or what it will begin with: a pod that is being created may not have its name yet."""
    return shape.text(pod, "metadata", "name") or shape.text(pod, "metadata", "generateName").rstrip("-")
