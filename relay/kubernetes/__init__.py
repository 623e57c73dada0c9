"""Kubernetes: what pods say about deployments.

    admission.py  what an AdmissionReview is answered, and what it reports       pure
    snapshot.py   what all pods of a cluster together report                     pure
    pod.py        what one pod reports: one event for each container             pure
    naming.py     how a container's environment and image name are called        pure
    workload.py   whose pod it is                                                pure
    origin.py     whether an image's name is one of a registry                   pure
    node.py       on which platform it runs                                      pure
    skipped.py    why something is not reported
    shape.py      reading objects that may have any shape                        pure

    watcher.py       lists pods, follows their changes, and reports
    cluster.py       asks the API server, through the official client
    surroundings.py  nodes' platforms and namespaces' labels
    publishing.py    publishes the nodes' platforms for the webhook
    absences.py      marks what the cluster no longer runs
    memory.py        what each pod ran when it was last read                     pure
    next_step.py     what the watcher does after a failure                       pure

Kubernetes' objects come as their JSON, decoded; nothing but the watcher and what asks for it needs a client.
"""
