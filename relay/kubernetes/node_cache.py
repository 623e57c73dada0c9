"""What do pods not say themselves? Their nodes' platforms, and their namespaces' labels.

The platforms are published for the webhook, which cannot ask for them (relay/queue/nodes.py).

Both are listed with each snapshot, and what is new since is asked for one by one. Where that is forbidden it goes on
without: platforms are what the pods' specifications say, and templates that ask for labels find none. Any other
failure is the snapshot's own: a platform that is not known just now must not make another instance of each
container.
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


class Surroundings:
    """What is known of nodes and namespaces. `platforms` and `labels` grow while pods are read."""

    def __init__(self, cluster: Cluster, *, namespace: str, needs_labels: bool) -> None:
        self.platforms: dict[str, Platform] = {}
        self.labels: dict[str, Mapping[str, str]] = {}
        self._cluster = cluster
        self._needs_labels = needs_labels
        self._nodes = _Kind("nodes", cluster.nodes, cluster.node)
        # Who may look at one namespace only may get it, and not list them.
        self._namespaces = _Kind("namespaces", None if namespace else cluster.namespaces, cluster.namespace)

    @property
    def has_listed_nodes(self) -> bool:
        """Whether the nodes were listed: then `platforms` has all there are, those aside that do not say theirs."""
        return self._nodes.has_listed

    @property
    def basis(self) -> tuple[bool, bool]:
        """Whether nodes and namespaces were listed, after which instances are named and placed."""
        return self._nodes.has_listed, self._namespaces.has_listed

    def list(self) -> None:
        """Forget what is known, and list anew."""
        self.platforms.clear()
        self.labels.clear()
        for node in self._nodes.all():
            self._add_node(node)
        if self._needs_labels:
            for namespace in self._namespaces.all():
                self._add_namespace(namespace)

    def learn(self, pod: Mapping[str, Any]) -> bool:
        """Ask for the pod's node and namespace, if they are not known yet; tell whether its node is there.

        A pod whose node is gone runs nowhere, though it may say so until it is deleted too.
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
    """Objects of one kind: which were seen, and whether we may."""

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
        #: Whether we may not see them, as far as is known.
        self.is_forbidden = False
        #: Whether the last listing came to its end.
        self.has_listed = False

    def all(self) -> Iterator[Mapping[str, Any]]:
        """List them; nothing if that is forbidden."""
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
        """Return one that was not seen yet; None if it was, is gone, or may not be seen."""
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
        """Tell whether it was asked for and was not there."""
        return name in self._gone

    def _forbid(self, error: ClusterUnavailable) -> None:
        if error.status != HTTPStatus.FORBIDDEN:
            raise error
        self.is_forbidden = True
        log.warning("going on without %s until the next snapshot: %s", self._name, error)
