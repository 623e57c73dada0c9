"""Kubernetes objects for tests.

tests/data/kubernetes/ has them as the API servers of several distributions give them, in shape: names, uids and
digests are made up, `managedFields` and probes left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay.kubernetes.naming import Naming
from relay.settings import KubernetesSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent / "data" / "kubernetes"

#: With nothing set but what is given.
NAMING = Naming.of(KubernetesSettings(cluster="none"))


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def naming(**settings: Any) -> Naming:
    return Naming.of(KubernetesSettings(**{"cluster": "none"} | settings))


def digest_of(seed: str) -> str:
    return f"sha256:{hashlib.sha256(seed.encode()).hexdigest()}"


def pod_of(
    image_id: str,
    *,
    created: str = "2026-03-02T10:00:00Z",
    started: str = "2026-03-02T10:00:05Z",
    image: str = "ghcr.io/acme/web:1",
    name: str = "web-5d-aaaaa",
    **parts: Any,
) -> dict[str, Any]:
    """A Deployment's pod with one container that runs, called web-HASH-…; `parts` are spec and status beside it."""
    revision = name.removeprefix("web-").partition("-")[0]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"web-{revision}", "controller": True}
    status = {"name": "app", "imageID": image_id, "state": {"running": {"startedAt": started}}, "lastState": {}}
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": name,
            "creationTimestamp": created,
            "labels": {"pod-template-hash": revision},
            "ownerReferences": [owner],
        },
        "spec": {"containers": [{"name": "app", "image": image}]} | parts.get("spec", {}),
        "status": {"phase": "Running", "containerStatuses": [status]} | parts.get("status", {}),
    }


def node_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Make a pod's node, of which no more is known than its name."""
    return {"kind": "Node", "metadata": {"name": pod["spec"]["nodeName"]}}
