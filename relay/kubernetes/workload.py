"""The workload of a pod: the one that people name, not an intermediate controller. Pure.

A pod names only its own controller in `metadata.ownerReferences`. The next level is derived from the names, by the
rules of the controllers:

- a ReplicaSet of a Deployment is `<deployment>-<pod-template-hash>`, and its pods have the hash as a label
  (kubernetes/kubernetes `pkg/controller/deployment/sync.go`, `getNewReplicaSet`); Argo Rollouts does the same
  with a label of its own;
- a Job of a CronJob is `<cronjob>-<unix time>`, in minutes, and in seconds before Kubernetes 1.21
  (`pkg/controller/cronjob/utils.go`, `getJobName`);
- a ReplicationController of an OpenShift DeploymentConfig is named in an annotation of its pods;
- the mirror of a static pod is `<pod>-<node>` (`pkg/kubelet/config/common.go`, `generatePodName`).

A kind that is created anew for each run (`_RUNS`) gets the name of its origin, so that a run is not a new instance:

- the origin that a label of the pod names (`_STABLE_NAMES`): a CronWorkflow, a task of a pipeline, a Knative service;
- else the run's name without its random end: the five characters that an API server appends to `generateName`
  (kubernetes/apiserver `pkg/storage/names/generate.go`), a time in seconds, or a UUID;
- a pod without a controller has the name of its `generateName`, if it has one.

Not promised: a Job named `backup-20240131` by hand is taken for a run of a CronJob `backup`, and one named
`migrate-mssql` for a run of a Job `migrate`.
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
#: Label with the hash → kind of the ReplicaSet's owner.
_HASHES = {"pod-template-hash": "Deployment", "rollouts-pod-template-hash": "Rollout"}
#: Minutes since 1970 have eight digits from 1989 on, seconds ten from 2001 on.
_SCHEDULED = re.compile(r"(.+)-[0-9]{8,10}")
#: A name from `generateName`: an API server appends five characters without vowels and look-alikes.
_GENERATED = re.compile(r"(.+)-[bcdfghjklmnpqrstvwxz2456789]{5}")
#: A name made unique by its client: with a UUID, with or without its dashes.
_UNIQUE = re.compile(r"(.+)-[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
#: A pod of GitLab's runner, which appends characters of its own instead of using `generateName`.
_GITLAB_RUNNER = re.compile(r"(runner-.+-concurrent-[0-9]+)-[a-z0-9]+")

#: Maximum length of a label that names a workload; Kubernetes allows 63 characters. A longer one counts as absent.
_MAX_LABEL_CHARACTERS = 253

_POD = "Pod"

#: Controllers that are created anew for each run, or whose pods are.
_RUNS = frozenset({"Job", "Workflow", "TaskRun", "EphemeralRunner", _POD})

#: Kind of the pod's controller → labels of the pod whose values name its origin, and the origin's kind; the first
#: complete one counts. Several labels are joined by a dash.
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
    """The workload of a pod; a pod without a controller is its own."""

    kind: str
    #: "" if it is unknown.
    name: str
    #: The kind of the pod's controller, `Pod` if it has none. Not compared, because it follows from the rest.
    owner_kind: str = field(default=_POD, compare=False)

    @property
    def is_run(self) -> bool:
        """Whether its pods are runs, which end by themselves, not replicas, which a rollout replaces."""
        return self.owner_kind in _RUNS


def workload_of(pod: Mapping[str, Any]) -> Workload:
    """Return the workload of a pod."""
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
    """Return kind and name of the workload above a pod's controller, derived from the controller's name."""
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
    """Return kind and name of the origin that the pod's labels name."""
    for keys, above in _STABLE_NAMES.get(kind, ()):
        values = [labels.get(key, "") for key in keys]
        if not all(0 < len(value) <= _MAX_LABEL_CHARACTERS for value in values):
            continue
        if labels.get("tekton.dev/pipelineRun") == values[0] and (run := _GENERATED.fullmatch(values[0])):
            values[0] = run[1]  # a pipeline defined within its run has the run's name
        return above, "-".join(values)
    return None


def _above_replica_set(name: str, labels: Mapping[str, str]) -> tuple[str, str]:
    for label, kind in _HASHES.items():
        above = name.removesuffix(f"-{labels[label]}") if labels.get(label) else name
        if above and above != name:
            return kind, above
    return "ReplicaSet", name


def _generated_from(pod: Mapping[str, Any]) -> str:
    """Return the prefix from which a pod's name was generated, without the dash; else its name."""
    name, prefix = json_access.text(pod, "metadata", "name"), json_access.text(pod, "metadata", "generateName")
    return (prefix.rstrip("-") if name.startswith(prefix) else "") or _pod_name(pod)


def _pod_name(pod: Mapping[str, Any]) -> str:
    """Return a pod's name, or its prefix while the pod is created and has no name yet."""
    return json_access.text(pod, "metadata", "name") or json_access.text(pod, "metadata", "generateName").rstrip("-")
