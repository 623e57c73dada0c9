"""Environment and image name of a container, by the settings' templates. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Self

from relay.errors import ConfigurationError
from relay.events.event import MAX_NAME_BYTES
from relay.settings import kubernetes_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.settings import KubernetesSettings
    from relay.template import Template

#: Hexadecimal digits that replace the end of a name over `MAX_NAME_BYTES`: 80 bits of its SHA-256.
HASH_DIGITS = 20

#: Maximum length of a label value in a template; Kubernetes allows 63 characters. A longer one counts as absent,
#: because each of a pod's containers would repeat it.
MAX_LABEL_CHARACTERS = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The placeholders of a container that templates use."""

    namespace: str
    workload: str
    #: Of the workload: `Deployment`, `StatefulSet`, …
    kind: str
    container: str
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    pod_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """The naming of one cluster's containers, made once from the settings."""

    #: "" if it has no name.
    cluster: str
    #: Of `image.name`.
    name: Template
    #: Of `environment.name`.
    environment: Template
    #: Globs (`fnmatch.fnmatchcase`).
    ignore_namespaces: tuple[str, ...]
    #: Kinds of workloads and of pods' controllers, case-folded.
    ignore_kinds: frozenset[str]

    @classmethod
    def of(cls, settings: KubernetesSettings) -> Self:
        """Return the naming of the settings; raise `ConfigurationError` without a cluster name, or one in a template.

        The settings do not check this, because workers share them and need no cluster name.
        """
        naming = cls(
            cluster=settings.cluster_name,
            name=kubernetes_template(settings.name_template),
            environment=kubernetes_template(settings.environment_template or settings.derived_environment_template),
            ignore_namespaces=settings.ignore_namespaces,
            ignore_kinds=frozenset(kind.casefold() for kind in settings.ignore_kinds),
        )
        if not naming.cluster and "cluster" in naming.placeholders:
            raise ConfigurationError(
                "a template asks for {cluster}: set CLUSTER_NAME (kubernetes.cluster) to its name"
            )
        return naming

    @property
    def placeholders(self) -> frozenset[str]:
        """What the templates ask for."""
        return self.name.placeholders | self.environment.placeholders

    @property
    def needs_namespace_labels(self) -> bool:
        """Whether a template uses labels of the namespace, which a pod does not have."""
        return any(placeholder.startswith("namespace_labels[") for placeholder in self.placeholders)

    def ignores(self, namespace: str) -> bool:
        """Return whether nothing of this namespace is reported."""
        return any(fnmatchcase(namespace, glob) for glob in self.ignore_namespaces)

    def ignores_kind(self, *kinds: str) -> bool:
        """Return whether nothing is reported of pods of one of these kinds."""
        return bool(self.ignore_kinds) and any(kind.casefold() in self.ignore_kinds for kind in kinds)

    def of_container(self, place: Place) -> tuple[str, str] | None:
        """Return environment and image name; None if a template uses a missing label."""
        values = {
            "cluster": self.cluster,
            "namespace": place.namespace,
            "workload": place.workload,
            "kind": place.kind,
            "container": place.container,
        }
        for asked in self.placeholders:
            kind, _, key = asked.rstrip("]").partition("[")
            if key:
                labels = place.pod_labels if kind == "pod_labels" else place.namespace_labels
                value = labels.get(key, "")
                values[asked] = value if len(value) <= MAX_LABEL_CHARACTERS else ""
        environment, name = self.environment.fill(values), self.name.fill(values)
        return None if environment is None or name is None else (shortened(environment), shortened(name))


def shortened(name: str) -> str:
    """Return a name of at most `MAX_NAME_BYTES` of UTF-8: of a longer one the beginning, `-`, and its hash.

    The result is deterministic, and different for different names.
    """
    # A review may have lone surrogates; the event refuses those that remain.
    encoded = name.encode(errors="surrogatepass")
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:HASH_DIGITS]
    beginning = encoded[: MAX_NAME_BYTES - 1 - HASH_DIGITS].decode(errors="ignore")
    return f"{beginning}-{digest}"
