"""Cache of the nodes' platforms and the namespaces' labels, which pods do not have.

The platforms are published for the webhook, which cannot read nodes (relay/queue/nodes.py).

Both are listed with each snapshot, and new ones are read one by one. Without the right to read them, platforms are
those that pods' specifications pin, and templates find no namespace labels. Any other error fails the snapshot: a
platform that is temporarily unknown must not create another instance of each container.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from relay.errors import ClusterUnavailable
from relay.kubernetes import json_access
from relay.kubernetes.node import platform_of_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from relay.events.platform import Platform
    from relay.kubernetes.cluster import Cluster, Page

log = logging.getLogger("relay.watch")


class NodeCache:
    """Nodes and namespaces by name. `platforms` and `labels` grow while pods are read."""

    def __init__(self, cluster: Cluster, *, namespace: str, needs_labels: bool) -> None:
        self.platforms: dict[str, Platform] = {}
        self.labels: dict[str, Mapping[str, str]] = {}
        self._cluster = cluster
        self._needs_labels = needs_labels
        self._nodes = _Kind("nodes", cluster.nodes, cluster.node)
        # A user of one namespace may get it, but not list all.
        self._namespaces = _Kind("namespaces", None if namespace else cluster.namespaces, cluster.namespace)

    @property
    def has_all_nodes(self) -> bool:
        """Whether the nodes were listed, so that `platforms` has every node with a known platform."""
        return self._nodes.has_listed

    @property
    def basis(self) -> tuple[bool, bool]:
        """Whether nodes and whether namespaces were listed: instances' names and platforms depend on it."""
        return self._nodes.has_listed, self._namespaces.has_listed

    def list(self) -> None:
        """Clear the cache, and list all."""
        self.platforms.clear()
        self.labels.clear()
        for node in self._nodes.all():
            self._add_node(node)
        if self._needs_labels:
            for namespace in self._namespaces.all():
                self._add_namespace(namespace)

    def read_for(self, pod: Mapping[str, Any]) -> bool:
        """Read a pod's node and namespace, if they are new; return whether its node exists.

        A pod whose node is gone does not run, though its status may say so until it is deleted.
        """
        if node := self._nodes.new(json_access.text(pod, "spec", "nodeName")):
            self._add_node(node)
        if self._needs_labels and (namespace := self._namespaces.new(json_access.text(pod, "metadata", "namespace"))):
            self._add_namespace(namespace)
        return not self._nodes.is_gone(json_access.text(pod, "spec", "nodeName"))

    def _add_node(self, node: Mapping[str, Any]) -> None:
        if platform := platform_of_node(node):
            self.platforms[json_access.text(node, "metadata", "name")] = platform

    def _add_namespace(self, namespace: Mapping[str, Any]) -> None:
        self.labels[json_access.text(namespace, "metadata", "name")] = json_access.labels(
            namespace, "metadata", "labels"
        )


class _Kind:
    """Objects of one kind: those seen, and whether reading them is forbidden."""

    def __init__(
        self,
        name: str,
        pages: Callable[[], Iterator[Page]] | None,
        read: Callable[[str], Mapping[str, Any]],
    ) -> None:
        self._name = name
        self._pages = pages
        self._read = read
        self._seen: set[str] = set()
        self._gone: set[str] = set()
        #: Whether the last request was forbidden.
        self.is_forbidden = False
        #: Whether the last listing was complete.
        self.has_listed = False

    def all(self) -> Iterator[Mapping[str, Any]]:
        """List all; none if that is forbidden."""
        self._seen.clear()
        self._gone.clear()
        self.is_forbidden = self.has_listed = False
        try:
            for page in self._pages() if self._pages else ():
                self._seen.update(json_access.text(each, "metadata", "name") for each in page.items)
                yield from page.items
        except ClusterUnavailable as error:
            self._forbid(error)
        else:
            self.has_listed = True

    def new(self, name: str) -> Mapping[str, Any] | None:
        """Return an object that was not seen yet; None if it was, is gone, or is forbidden."""
        if not name or name in self._seen or self.is_forbidden:
            return None
        found = None
        try:
            found = self._read(name)
        except ClusterUnavailable as error:
            if error.status == HTTPStatus.NOT_FOUND:
                self._gone.add(name)
            else:
                self._forbid(error)
        self._seen.add(name)
        return found

    def is_gone(self, name: str) -> bool:
        """Return whether a request found that it does not exist."""
        return name in self._gone

    def _forbid(self, error: ClusterUnavailable) -> None:
        if error.status != HTTPStatus.FORBIDDEN:
            raise error
        self.is_forbidden = True
        log.warning("continuing without %s until the next snapshot: %s", self._name, error)
