"""Kubernetes: what pods say about deployments.

    admission.py  what an AdmissionReview is answered, and what it reports       pure
    snapshot.py   what all pods of a cluster together report                     pure
    pod.py        what one pod reports: one event for each container             pure
    naming.py     how a container's environment and image name are called        pure
    workload.py   whose pod it is                                                pure
    node.py       on which platform it runs                                      pure
    skipped.py    why something is not reported
    shape.py      reading objects that may have any shape                        pure

Kubernetes' objects come as their JSON, decoded; nothing here needs a client for it.
"""
