"""Workloads and environments of the demo's estate, with real public images."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

#: Versions of each workload; bounds the distinct digests.
VERSIONS = 12


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One image repository, fully qualified, with the tag's part before the last number."""

    repository: str
    series: str

    @property
    def name(self) -> str:
        """Last part of the repository, as a container would be named."""
        return self.repository.rsplit("/", 1)[-1]

    def tag(self, version: int) -> str:
        """Return the tag of the `version`th release, such as `1.27.3`."""
        return f"{self.series}.{version}"

    def digest(self, version: int) -> str:
        """Return a digest for the release: a hash of repository and tag, so always the same."""
        return "sha256:" + sha256(f"{self.repository}:{self.tag(version)}".encode()).hexdigest()


def _workloads(listing: str) -> tuple[Workload, ...]:
    """Parse `repository:series` items, separated by white space."""
    pairs = (line.rsplit(":", 1) for line in listing.split())
    return tuple(Workload(repository=repository, series=series) for repository, series in pairs)


SERVICES = _workloads("""
    docker.io/library/nginx:1.27 docker.io/library/postgres:17 docker.io/library/redis:7.4 docker.io/library/httpd:2.4
    docker.io/library/rabbitmq:4.0 docker.io/library/memcached:1.6 docker.io/library/mongo:8.0
    docker.io/library/mariadb:11.4 docker.io/library/wordpress:6.7 docker.io/library/traefik:v3.2
    docker.io/clickhouse/clickhouse-server:24.10 docker.io/apache/airflow:2.10 docker.io/apache/superset:4.1
    docker.io/apache/kafka:3.9 docker.io/metabase/metabase:v0.51 docker.io/n8nio/n8n:1.68
    docker.io/minio/minio:2024.11 ghcr.io/goharbor/harbor-core:v2.12 ghcr.io/dexidp/dex:v2.41
    ghcr.io/immich-app/immich-server:v1.120 ghcr.io/mlflow/mlflow:v2.17 ghcr.io/berriai/litellm:v1.52
    quay.io/keycloak/keycloak:26.0 quay.io/minio/console:v1.7 gcr.io/distroless/static-debian12:2024
    gcr.io/distroless/java21-debian12:2024 gcr.io/google-samples/microservices-demo/frontend:v0.10
    gcr.io/google-samples/microservices-demo/checkoutservice:v0.10
    gcr.io/google-samples/microservices-demo/cartservice:v0.10
    gcr.io/google-samples/microservices-demo/paymentservice:v0.10
    gcr.io/google-samples/microservices-demo/shippingservice:v0.10
    gcr.io/google-samples/microservices-demo/adservice:v0.10 public.ecr.aws/aws-containers/retail-store-sample-ui:0.8
    public.ecr.aws/aws-containers/retail-store-sample-cart:0.8
    public.ecr.aws/aws-containers/retail-store-sample-catalog:0.8
    public.ecr.aws/aws-containers/retail-store-sample-orders:0.8 mcr.microsoft.com/dotnet/samples:9.0
    mcr.microsoft.com/mssql/server:2022
""")

#: Each runs beside many services: one repository many times in an environment, told apart by name.
SIDECARS = _workloads("""
    docker.io/envoyproxy/envoy:v1.32 ghcr.io/fluent/fluent-bit:3.1 docker.io/hashicorp/vault:1.18
    quay.io/brancz/kube-rbac-proxy:v0.18 public.ecr.aws/aws-observability/aws-otel-collector:v0.41
    gcr.io/cloud-sql-connectors/cloud-sql-proxy:2.14 quay.io/oauth2-proxy/oauth2-proxy:v7.7
""")

PLATFORM = _workloads("""
    quay.io/prometheus/prometheus:v3.0 quay.io/prometheus/alertmanager:v0.27 quay.io/prometheus/node-exporter:v1.8
    quay.io/prometheus/blackbox-exporter:v0.25 quay.io/argoproj/argocd:v2.13
    quay.io/jetstack/cert-manager-controller:v1.16 quay.io/jetstack/cert-manager-webhook:v1.16
    quay.io/cilium/cilium:v1.16 quay.io/cilium/hubble-relay:v1.16 quay.io/thanos/thanos:v0.36
    quay.io/strimzi/operator:0.44 quay.io/metallb/speaker:v0.14 registry.k8s.io/ingress-nginx/controller:v1.12
    registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.14 registry.k8s.io/metrics-server/metrics-server:v0.7
    registry.k8s.io/external-dns/external-dns:v0.15 registry.k8s.io/coredns/coredns:v1.11
    registry.k8s.io/kube-proxy:v1.31 registry.k8s.io/autoscaling/cluster-autoscaler:v1.31
    registry.k8s.io/sig-storage/csi-provisioner:v5.1 ghcr.io/fluxcd/source-controller:v1.4
    ghcr.io/fluxcd/kustomize-controller:v1.4 ghcr.io/fluxcd/helm-controller:v1.1
    ghcr.io/external-secrets/external-secrets:v0.10 ghcr.io/kedacore/keda:2.16 ghcr.io/kyverno/kyverno:v1.13
    ghcr.io/aquasecurity/trivy-operator:0.22 ghcr.io/stakater/reloader:v1.1 docker.io/grafana/grafana:11.3
    docker.io/grafana/loki:3.2 docker.io/grafana/tempo:2.6 docker.io/hashicorp/consul:1.20
    gcr.io/cadvisor/cadvisor:v0.50 public.ecr.aws/eks/aws-load-balancer-controller:v2.10
    public.ecr.aws/karpenter/controller:1.0 mcr.microsoft.com/oss/azure/workload-identity/webhook:v1.3
""")

#: Workloads of each edge node; a container is named after its node.
EDGE = _workloads("""
    docker.io/library/eclipse-mosquitto:2.0 docker.io/library/telegraf:1.32 docker.io/library/nginx:1.27
    ghcr.io/home-assistant/home-assistant:2024.11 ghcr.io/fluent/fluent-bit:3.1 quay.io/prometheus/node-exporter:v1.8
    mcr.microsoft.com/azureiotedge-agent:1.5 mcr.microsoft.com/azureiotedge-hub:1.5 docker.io/nodered/node-red:4.0
    docker.io/tailscale/tailscale:v1.76
""")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A cluster or pipeline, and the optional fields that it sends."""

    name: str
    utc_offset: int = 0  # hours; offset of its timestamps
    identified: bool = False  # sends ids, and retries with the same id
    cluster: bool = True  # sends start times and snapshots; a pipeline sends neither


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment: its source and what runs in it."""

    name: str
    source: Source
    sidecars: int = 0  # beside each service
    branches: int = 0  # copies of each service, one for each pull request
    nodes: int = 0  # of an edge fleet, which runs EDGE and no services
    infrastructure: bool = False  # it also runs PLATFORM
    architectures: tuple[str, ...] = ("amd64",)
    changes: int = 2  # of each workload, at most, without rollbacks


_PROD_EU = Source(name="prod-eu-1", utc_offset=1)
_PROD_US = Source(name="prod-us-1", utc_offset=-5)
_PROD_AP = Source(name="prod-ap-1")
_STAGING = Source(name="staging-eu-1", identified=True)
_DEV = Source(name="dev-1", identified=True)
_EDGE = Source(name="edge-fleet")
_GITHUB = Source(name="github-actions/storefront", identified=True, cluster=False)
_GITLAB = Source(name="gitlab-ci/platform", identified=True, cluster=False)

ENVIRONMENTS = (
    Environment(name="production-eu", source=_PROD_EU, sidecars=6, infrastructure=True),
    Environment(
        name="production-us",
        source=_PROD_US,
        sidecars=6,
        infrastructure=True,
        architectures=("amd64", "arm64"),
    ),
    Environment(name="production-ap", source=_PROD_AP, sidecars=6, infrastructure=True),
    Environment(name="staging", source=_STAGING, sidecars=5, infrastructure=True, changes=4),
    Environment(name="qa", source=_STAGING, sidecars=3, changes=4),
    Environment(name="loadtest", source=_STAGING, sidecars=3),
    Environment(name="development", source=_DEV, sidecars=3, infrastructure=True, changes=5),
    Environment(name="sandbox", source=_DEV, sidecars=1, changes=3),
    Environment(name="edge", source=_EDGE, nodes=90, architectures=("arm64", "arm64", "arm/v7", "amd64")),
    Environment(name="edge-canary", source=_EDGE, nodes=8, architectures=("arm64", "arm/v7"), changes=5),
    Environment(name="preview", source=_GITHUB, branches=6, changes=4),
    Environment(name="deployed", source=_GITLAB, changes=5),  # the default: its reports name none
)
