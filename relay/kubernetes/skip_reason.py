"""Reasons for which a container, pod or review is not reported."""

from __future__ import annotations

from enum import StrEnum


class SkipReason(StrEnum):
    """The reason, of a container unless stated otherwise. Also the metric's label."""

    #: Its `imageID` has no digest of a registry's manifest: an image id of the node, a local image, or nothing.
    #: Also a local image that its specification pins.
    DIGEST_UNAVAILABLE = "digest_unavailable"
    #: It has not run yet, and its specification has no digest.
    NOT_PINNED = "not_pinned"
    #: It ran the same digest before, or was specified with the same image.
    UNCHANGED = "unchanged"
    #: In a snapshot, a newer pod (or one that has not ended) represents the same instance.
    REPLICA = "replica"
    #: It has not started yet.
    NOT_RUNNING = "not_running"
    #: Its image is not a valid reference.
    INVALID_IMAGE = "invalid_image"
    #: Its image name or environment, filled in by the templates, is not printable.
    INVALID_NAME = "invalid_name"
    #: A template uses a label that its namespace or pod does not have, or that is unknown here.
    LABEL_MISSING = "label_missing"
    #: The pod is in one of `kubernetes.ignore_namespaces`.
    NAMESPACE_IGNORED = "namespace_ignored"
    #: The platforms of the cluster's nodes are known, but not that of the pod's node, and its specification pins
    #: none: the pod is not scheduled yet, or the node is new. The watcher reports it.
    PLATFORM_UNKNOWN = "platform_unknown"
    #: The pod, or its controller, is of one of `kubernetes.ignore_kinds`.
    KIND_IGNORED = "kind_ignored"
    #: A volume of the pod is an image, whose digest the pod's status does not have.
    IMAGE_VOLUME = "image_volume"
    #: The gateway has no cluster name (`kubernetes.cluster`); of a whole review.
    CLUSTER_UNNAMED = "cluster_unnamed"
    #: The pod is being deleted.
    TERMINATING = "terminating"
    #: The pod has more than `pod.MAX_CONTAINERS`.
    TOO_MANY_CONTAINERS = "too_many_containers"
    #: The object is no pod, or has no valid namespace or name.
    NOT_A_POD = "not_a_pod"
    #: The review is neither of a creation nor of an update.
    OTHER_OPERATION = "other_operation"
    #: The review is of a dry run.
    DRY_RUN = "dry_run"
    #: The review is no AdmissionReview.
    NOT_A_REVIEW = "not_a_review"
    #: The token may not report for its environment.
    NOT_PERMITTED = "not_permitted"
    #: It could not be enqueued.
    NOT_REPORTED = "not_reported"
