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

What is made anew for each run (`_RUNS`) is named after what it is made from, so that a run is not a new instance:

- a label of the pod says what that is (`_STABLE_NAMES`): a CronWorkflow, a task of a pipeline, a Knative service;
- else the run's name without its random end: the five characters that an API server appends to `generateName`
  (kubernetes/apiserver `pkg/storage/names/generate.go`), a time in seconds, or a UUID;
- a pod without a controller is named after its `generateName`, if it has one.

Not promised: that a Job called `backup-20240131` by hand is not taken for a run of a CronJob `backup`, nor one
called `migrate-mssql` for a run of a Job `migrate`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from relay.kubernetes import json_access

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIRROR = "kubernetes.io/config.mirror"
_DEPLOYMENT_CONFIG = "openshift.io/deployment-config.name"
#: The label that holds the hash → the kind whose ReplicaSet it is.
_HASHES = {"pod-template-hash": "Deployment", "rollouts-pod-template-hash": "Rollout"}
#: Minutes since 1970 have eight digits from 1989 on, seconds ten from 2001 on.
_SCHEDULED = re.compile(r"(.+)-[0-9]{8,10}")
#: What an API server appends to `generateName`: five characters without vowels and what looks like them.
_GENERATED = re.compile(r"(.+)-[bcdfghjklmnpqrstvwxz2456789]{5}")
#: What programs append that make a name unique by themselves: a UUID, with or without its dashes.
_UNIQUE = re.compile(r"(.+)-[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
#: A pod that GitLab's runner makes: it appends characters of its own, and asks for no `generateName`.
_GITLAB_RUNNER = re.compile(r"(runner-.+-concurrent-[0-9]+)-[a-z0-9]+")

#: Longest value of a label that names a workload; Kubernetes allows 63 characters. A longer one counts as absent.
_MAX_LABEL_CHARACTERS = 253

_POD = "Pod"

#: Controllers that are made anew for each run, or whose pods are.
_RUNS = frozenset({"Job", "Workflow", "TaskRun", "EphemeralRunner", _POD})

#: Kind of the pod's controller → labels of the pod whose values name what it is made from, and the kind that this is;
#: the first that is there. Several labels are joined by a dash.
_STABLE_NAMES: Mapping[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "Workflow": (
        (("workflows.argoproj.io/cron-workflow",), "CronWorkflow"),
        (("workflows.argoproj.io/workflow-template",), "WorkflowTemplate"),
        (("workflows.argoproj.io/cluster-workflow-template",), "ClusterWorkflowTemplate"),
    ),
    "TaskRun": (
        (("tekton.dev/pipeline", "tekton.dev/pipelineTask"), "PipelineTask"),
        (("tekton.dev/task",), "Task"),
        (("tekton.dev/clusterTask",), "ClusterTask"),
        (("tekton.dev/pipelineTask",), "PipelineTask"),
    ),
    "ReplicaSet": (
        (("serving.knative.dev/service",), "Service"),
        (("serving.knative.dev/configuration",), "Configuration"),
    ),
    "EphemeralRunner": ((("actions.github.com/scale-set-name",), "AutoscalingRunnerSet"),),
    _POD: ((("jenkins/label",), _POD),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a pod belongs to; a pod without a controller belongs to itself."""

    kind: str
    #: "" if nothing says it.
    name: str
    #: The kind of the pod's controller, `Pod` if it has none. It follows from the rest, so it is not compared.
    owner_kind: str = field(default=_POD, compare=False)

    @property
    def is_run(self) -> bool:
        """Whether its pods are runs, which end by themselves, and not replicas, which a rollout replaces."""
        return self.owner_kind in _RUNS


def workload_of(pod: Mapping[str, Any]) -> Workload:
    """Read a pod's workload off its metadata."""
    annotations = json_access.labels(pod, "metadata", "annotations")
    if _MIRROR in annotations:
        node = json_access.text(pod, "spec", "nodeName")
        return Workload(kind=_POD, name=_pod_name(pod).removesuffix(f"-{node}"))
    owner = next(
        (each for each in json_access.each(pod, "metadata", "ownerReferences") if each.get("controller") is True), {}
    )
    kind, name = json_access.text(owner, "kind"), json_access.text(owner, "name")
    if not kind or not name:
        kind, name = _POD, _generated_from(pod)
    labels = json_access.labels(pod, "metadata", "labels")
    above = _named_by_label(kind, labels) or _above(kind, name, labels, annotations)
    return Workload(kind=above[0], name=above[1], owner_kind=kind)


def _above(kind: str, name: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> tuple[str, str]:
    """Return kind and name of the workload of a pod's controller, read off the controller's name."""
    match kind:
        case "ReplicaSet":
            return _above_replica_set(name, labels)
        case "Job" | "Workflow" if scheduled := _SCHEDULED.fullmatch(name):
            return ("CronJob" if kind == "Job" else "CronWorkflow"), scheduled[1]
        case "ReplicationController" if config := annotations.get(_DEPLOYMENT_CONFIG):
            return "DeploymentConfig", config
        case "Job" | "Workflow" | "TaskRun" if generated := _GENERATED.fullmatch(name) or _UNIQUE.fullmatch(name):
            return kind, generated[1]
        case "Pod" if made := _GITLAB_RUNNER.fullmatch(name) or _UNIQUE.fullmatch(name):
            return kind, made[1]
        case _:
            return kind, name


def _named_by_label(kind: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """Return kind and name of what the pod's labels say that it is made from."""
    for keys, above in _STABLE_NAMES.get(kind, ()):
        values = [labels.get(key, "") for key in keys]
        if not all(0 < len(value) <= _MAX_LABEL_CHARACTERS for value in values):
            continue
        if labels.get("tekton.dev/pipelineRun") == values[0] and (run := _GENERATED.fullmatch(values[0])):
            values[0] = run[1]  # a pipeline that is written out in its run is called as the run
        return above, "-".join(values)
    return None


def _above_replica_set(name: str, labels: Mapping[str, str]) -> tuple[str, str]:
    for label, kind in _HASHES.items():
        above = name.removesuffix(f"-{labels[label]}") if labels.get(label) else name
        if above and above != name:
            return kind, above
    return "ReplicaSet", name


def _generated_from(pod: Mapping[str, Any]) -> str:
    """Return what a pod's name was generated from, without the dash; its name if that was given."""
    name, prefix = json_access.text(pod, "metadata", "name"), json_access.text(pod, "metadata", "generateName")
    return (prefix.rstrip("-") if name.startswith(prefix) else "") or _pod_name(pod)


def _pod_name(pod: Mapping[str, Any]) -> str:
    """Return a pod's name, or what it will begin with: a pod that is being created may not have its name yet."""
    return json_access.text(pod, "metadata", "name") or json_access.text(pod, "metadata", "generateName").rstrip("-")
