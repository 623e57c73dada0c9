"""Why is something of Kubernetes not reported?"""

from __future__ import annotations

from enum import StrEnum


class Skipped(StrEnum):
    """One reason each; of a container unless it says otherwise. Also the metric's label."""

    #: It runs, and its `imageID` names no manifest of a registry: an image id of the node, an image that was loaded
    #: into the node or built on it, or nothing. Also an image that its specification pins and that no registry has.
    DIGEST_UNAVAILABLE = "digest_unavailable"
    #: It did not run yet, and its specification has no digest.
    NOT_PINNED = "not_pinned"
    #: It ran the same digest before, or was specified with the same image.
    UNCHANGED = "unchanged"
    #: In a snapshot, a newer pod (or one that is not over) speaks for the same instance.
    REPLICA = "replica"
    #: It has not started yet.
    NOT_RUNNING = "not_running"
    #: Its image is no reference that the API takes.
    INVALID_IMAGE = "invalid_image"
    #: Its image name or environment, as the templates give them, is not printable.
    INVALID_NAME = "invalid_name"
    #: A template asks for a label that its namespace or pod does not have, or that is not known here.
    LABEL_MISSING = "label_missing"
    #: The pod is in one of `kubernetes.ignore_namespaces`.
    NAMESPACE_IGNORED = "namespace_ignored"
    #: The platforms of the cluster's nodes are known, and neither is the pod's node among them nor does its
    #: specification pin a platform: a pod that is not scheduled yet, or a new node. The watcher reports it.
    PLATFORM_UNKNOWN = "platform_unknown"
    #: The pod, or its controller, is of one of `kubernetes.ignore_kinds`.
    KIND_IGNORED = "kind_ignored"
    #: A volume of the pod is an image: a mounted file system, which the pod's status tells no digest of.
    IMAGE_VOLUME = "image_volume"
    #: The gateway has no cluster name (`kubernetes.cluster`); of a whole review.
    CLUSTER_UNNAMED = "cluster_unnamed"
    #: The pod is being deleted.
    TERMINATING = "terminating"
    #: The pod has more containers than any pod has, `pod.MAX_CONTAINERS`.
    TOO_MANY_CONTAINERS = "too_many_containers"
    #: The object is no pod, or has no namespace or name, or longer ones than there are.
    NOT_A_POD = "not_a_pod"
    #: The review is neither of a creation nor of an update.
    OTHER_OPERATION = "other_operation"
    #: The review's request is not to be stored.
    DRY_RUN = "dry_run"
    #: The review is no AdmissionReview.
    NOT_A_REVIEW = "not_a_review"
    #: The gateway's token is not for its environment.
    NOT_PERMITTED = "not_permitted"
    #: Redis did not take it.
    NOT_REPORTED = "not_reported"
