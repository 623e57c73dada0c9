"""How are a container's environment and image name called? As the settings' templates say."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Self

from relay.errors import ConfigurationError
from relay.settings import kubernetes_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.settings import KubernetesSettings
    from relay.template import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a container stands, in the words that templates use."""

    namespace: str
    workload: str
    #: Of the workload: `Deployment`, `StatefulSet`, …
    kind: str
    container: str
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What one cluster's containers are called, made once from the settings."""

    #: "" if it has no name.
    cluster: str
    #: Of `image.name`.
    name: Template
    #: Of `environment.name`.
    environment: Template
    #: Globs (`fnmatch.fnmatchcase`).
    ignore_namespaces: tuple[str, ...]

    @classmethod
    def of(cls, settings: KubernetesSettings) -> Self:
        """Read the settings; `ConfigurationError` if a template asks for the cluster's name and it has none.

        That is not the settings' own check, because workers share them and need not know which cluster reports.
        """
        naming = cls(
            cluster=settings.cluster,
            name=kubernetes_template(settings.name_template),
            environment=kubernetes_template(settings.environment_template or settings.derived_environment_template),
            ignore_namespaces=settings.ignore_namespaces,
        )
        if not settings.cluster and "cluster" in naming.placeholders:
            raise ConfigurationError("a template asks for {cluster}: set kubernetes.cluster, or CLUSTER_NAME")
        return naming

    @property
    def placeholders(self) -> frozenset[str]:
        """What the templates ask for."""
        return self.name.placeholders | self.environment.placeholders

    @property
    def needs_namespace_labels(self) -> bool:
        """Whether a template asks for labels of the namespace, which pods do not carry."""
        return any(placeholder.startswith("namespace_labels[") for placeholder in self.placeholders)

    def ignores(self, namespace: str) -> bool:
        """Tell whether nothing of this namespace is reported."""
        return any(fnmatchcase(namespace, glob) for glob in self.ignore_namespaces)

    def of_container(self, place: Place) -> tuple[str, str] | None:
        """Return environment and image name; None if a template asks for a label that the namespace does not have."""
        values = {
            "cluster": self.cluster,
            "namespace": place.namespace,
            "workload": place.workload,
            "kind": place.kind,
            "container": place.container,
        } | {f"namespace_labels[{key}]": value for key, value in place.namespace_labels.items()}
        environment, name = self.environment.fill(values), self.name.fill(values)
        return None if environment is None or name is None else (environment, name)
