"""Kubernetes pods as deployment events.

    admission.py     an AdmissionReview: its response and its events             pure
    snapshot.py      all pods of a cluster together                              pure
    pod.py           one pod: an event for each container                        pure
    naming.py        environment and image name of a container                   pure
    workload.py      the workload of a pod                                       pure
    origin.py        images that are in no registry                              pure
    node.py          the platform of a pod                                       pure
    skip_reason.py   why a container or pod is not reported                      pure
    json_access.py   access to JSON of any shape                                 pure

    watcher.py       lists pods, follows their changes, and reports them
    cluster.py       requests to the API server, through the official client
    node_cache.py    the nodes' platforms and the namespaces' labels
    publishing.py    publishes the nodes' platforms for the webhook
    absences.py      marks instances that no longer run
    pod_cache.py     what each pod ran when it was last read                     pure
    retry_policy.py  what the watcher does after a failure                       pure

Objects are decoded JSON; only `cluster` needs the Kubernetes client.
"""
