"""The API server, asked through the official client: a real client, a real socket."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes.config import incluster_config
from kubernetes_api import KubernetesApi
from pods import digest_of, load, pod_of
from servers import Authority, Server, answer, says

from relay.errors import ClusterUnavailable, ConfigurationError
from relay.events.platform import Platform
from relay.kubernetes.cluster import Cluster
from relay.kubernetes.node_cache import NodeCache
from relay.settings import KubernetesSettings

if TYPE_CHECKING:
    from pathlib import Path


def cluster_of(**settings: Any) -> Cluster:
    return Cluster(KubernetesSettings(**settings))


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    made = pod_of(f"ghcr.io/acme/web@{digest_of('a')}", name=name)
    made["metadata"] |= metadata
    return made


def names(items: Any) -> list[str]:
    return [each["metadata"]["name"] for each in items]


def test_a_listing_comes_in_pages_of_one_moment(api: KubernetesApi) -> None:
    for number in range(5):
        api.put(pod(f"web-{number}"))
    version = api.version
    with cluster_of(page_size=2) as cluster:
        pages = cluster.pods()
        first = next(pages)
        api.put(pod("web-9"))
        rest = list(pages)
    assert [names(page.items) for page in [first, *rest]] == [["web-0", "web-1"], ["web-2", "web-3"], ["web-4"]]
    assert {page.position for page in [first, *rest]} == {version}
    assert all(each.query["limit"] == "2" for each in api.asked)


def test_a_listing_of_a_forgotten_moment_is_gone(api: KubernetesApi) -> None:
    for number in range(3):
        api.put(pod(f"web-{number}"))
    with cluster_of(page_size=1) as cluster:
        pages = cluster.pods()
        next(pages)
        api.forget()
        with pytest.raises(ClusterUnavailable, match="too old") as caught:
            next(pages)
    assert caught.value.status == 410


def test_one_namespace_and_a_selector_are_asked_for_in_lists_and_watches_alike(api: KubernetesApi) -> None:
    api.put(pod("seen", namespace="shop", labels={"team": "a"}))
    api.put(pod("of-others", namespace="shop", labels={"team": "b"}))
    api.put(pod("elsewhere", namespace="bank", labels={"team": "a"}))
    with cluster_of(namespace="shop", selector="team=a") as cluster:
        [page] = cluster.pods()
        assert names(page.items) == ["seen"]
        api.put(pod("of-others-too", namespace="shop", labels={"team": "b"}))
        api.put(pod("seen-too", namespace="shop", labels={"team": "a"}))
        [change] = islice(cluster.watch_pods(page.position, seconds=30), 1)
    assert names([change["object"]]) == ["seen-too"]


def test_a_watch_ends_when_its_time_is_over(api: KubernetesApi) -> None:
    with cluster_of() as cluster:
        changes = list(cluster.watch_pods(api.version, seconds=1))
    assert [each["type"] for each in changes] == ["BOOKMARK"]
    assert api.last("watch").query["timeoutSeconds"] == "1"


def test_a_watch_that_says_nothing_is_taken_for_dead(api: KubernetesApi) -> None:
    with cluster_of(silence=0.3) as cluster, pytest.raises(ClusterUnavailable, match="nothing came"):
        list(cluster.watch_pods(api.version, seconds=300))


@pytest.mark.parametrize("said_by", ["event", "status"])
def test_a_place_that_is_gone_is_told_with_its_code(api: KubernetesApi, said_by: str) -> None:
    place = api.version
    api.put(pod("web-1"))
    api.forget()
    api.says_gone_by = said_by
    with cluster_of() as cluster, pytest.raises(ClusterUnavailable, match="too old") as caught:
        list(cluster.watch_pods(place, seconds=30))
    assert caught.value.status == 410


@pytest.mark.parametrize(
    "line", [b"{\n", b"[]\n", b'"\n', b"<html>\n", b'{"type": "ERROR"}\n', b'{"type": "ERROR", "object": []}\n']
)
def test_a_line_that_cannot_be_read_ends_the_watch(api: KubernetesApi, line: bytes) -> None:
    place = api.version
    api.put(pod("web-0"))
    with cluster_of() as cluster:
        changes = cluster.watch_pods(place, seconds=5)
        assert next(changes)["type"] == "ADDED"
        api.say(line)
        with pytest.raises(ClusterUnavailable):
            list(changes)


def test_a_line_that_is_cut_off_was_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = json.dumps({"type": "ADDED", "object": pod("whole")}).encode() + b"\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = whole + whole[: len(whole) // 2]
    with Server(says(head + f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n0\r\n\r\n")) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with cluster_of() as cluster:
            changes = list(cluster.watch_pods("7", seconds=30))
    assert [names([each["object"]]) for each in changes] == [["whole"]]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"metadata": {}}', b'{"metadata": []}'])
def test_what_is_no_listing_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: bytes) -> None:
    """A proxy's page, say: an empty cluster must not be read out of it."""
    with Server(answer(200, body)) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with cluster_of() as cluster, pytest.raises(ClusterUnavailable):
            list(cluster.pods())


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with KubernetesApi() as elsewhere, Server(answer(307, Location=f"{elsewhere.url}/api/v1/pods")) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with cluster_of() as cluster, pytest.raises(ClusterUnavailable) as caught:
            list(cluster.pods())
        assert caught.value.status == 307
        assert elsewhere.asked == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 429, 500, 503, 504])
def test_a_refusal_has_its_status_and_what_the_server_says(api: KubernetesApi, status: int) -> None:
    api.fail(status, retry_after=7, message="told so", times=2)
    with cluster_of() as cluster:
        for ask in (lambda: list(cluster.pods()), lambda: list(cluster.watch_pods("1000", seconds=9))):
            with pytest.raises(ClusterUnavailable, match="told so") as caught:
                ask()
            assert (caught.value.status, caught.value.retry_after_seconds) == (status, 7)
            assert api.token not in str(caught.value)
    assert len(api.asked) == 2, "it was asked again behind our back"


def test_a_server_that_is_away_has_no_status(api: KubernetesApi) -> None:
    with cluster_of() as cluster:
        api.stop()
        with pytest.raises(ClusterUnavailable) as caught:
            list(cluster.pods())
    assert caught.value.status is None


def test_credentials_are_read_again(api: KubernetesApi, tmp_path: Path) -> None:
    with cluster_of() as cluster:
        api.token = "another"
        with pytest.raises(ClusterUnavailable) as caught:
            list(cluster.pods())
        assert caught.value.status == 401
        api.kubeconfig(tmp_path / "kubeconfig")
        cluster.renew()
        assert len(list(cluster.pods())) == 1


def test_credentials_that_cannot_be_read_again_leave_the_old_ones(api: KubernetesApi, tmp_path: Path) -> None:
    with cluster_of() as cluster:
        (tmp_path / "kubeconfig").write_text("{")
        cluster.renew()
        assert len(list(cluster.pods())) == 1


@pytest.mark.parametrize("content", [None, "", "{", "[]", "text", "{}", '{"current-context": "x"}'])
def test_no_cluster_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(ConfigurationError, match="KUBECONFIG"):
        cluster_of()


def test_a_context_that_is_not_there_is_a_configuration_error(api: KubernetesApi) -> None:
    with pytest.raises(ConfigurationError, match="staging"):
        Cluster(KubernetesSettings(), context="staging")


def test_within_a_cluster_the_service_account_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Over TLS, against the cluster's own authority; its token changes while we run."""
    authority = Authority(tmp_path)
    with KubernetesApi(tls=authority.server("kubernetes")) as api:
        account = tmp_path / "account"
        account.mkdir()
        (account / "token").write_text(api.token)
        monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
        monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority.file))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("KUBECONFIG", raising=False)
        api.put(pod("web-0"))
        with cluster_of() as cluster:
            assert names(next(cluster.pods()).items) == ["web-0"]
            api.token = "rotated"
            (account / "token").write_text("rotated")
            cluster.renew()
            [page] = cluster.pods()
            api.put(pod("web-1"))
            [change] = islice(cluster.watch_pods(page.position, seconds=30), 1)
            assert names([change["object"]]) == ["web-1"]


def test_the_clock_is_the_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listing = json.dumps({"metadata": {"resourceVersion": "7"}, "items": []}).encode()
    with Server(answer(200, listing, Date="Mon, 02 Mar 2026 10:00:00 GMT")) as server:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.url)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with cluster_of() as cluster:
            list(cluster.nodes())
            assert cluster.clock.isoformat() == "2026-03-02T10:00:00+00:00"


def test_platforms_are_the_nodes_and_new_nodes_are_asked_for(api: KubernetesApi) -> None:
    node = load("eks-node")
    api.put(node)
    with cluster_of() as cluster:
        cache = NodeCache(cluster, namespace="", needs_labels=False)
        cache.list()
        assert cache.platforms == {node["metadata"]["name"]: Platform(os="linux", architecture="arm64")}
        late = {"kind": "Node", "metadata": {"name": "late"}, "status": {"nodeInfo": {"architecture": "s390x"}}}
        api.put(late)
        for _ in range(3):
            cache.read_for({"spec": {"nodeName": "late"}})
            cache.read_for({"spec": {"nodeName": node["metadata"]["name"]}})
            cache.read_for({"spec": {}})
        assert cache.platforms["late"].architecture == "s390x"
        assert (api.count("get", "nodes"), api.count("get", "namespaces")) == (1, 0)
        for _ in range(3):
            cache.read_for({"spec": {"nodeName": "gone"}})  # 404: the pod outlived it
        assert "gone" not in cache.platforms
        assert api.count("get", "nodes") == 2


@pytest.mark.parametrize("verbs", [{"list", "get"}, {"get"}])
def test_without_permission_for_nodes_it_goes_on(api: KubernetesApi, verbs: set[str]) -> None:
    api.forbidden = {(verb, "nodes") for verb in verbs}
    with cluster_of() as cluster:
        cache = NodeCache(cluster, namespace="", needs_labels=False)
        cache.list()
        for _ in range(3):
            cache.read_for({"spec": {"nodeName": "kind-worker"}})
        assert cache.platforms == {}
        assert api.count("list", "nodes") + api.count("get", "nodes") <= 2
        api.forbidden = set()
        api.put(load("eks-node"))
        cache.list()
        assert cache.platforms, "a permission that came is not noticed"


@pytest.mark.parametrize("status", [401, 429, 500])
def test_nodes_that_cannot_be_seen_just_now_are_no_reason_to_guess(api: KubernetesApi, status: int) -> None:
    """Another platform is another instance."""
    api.fail(status, resource="nodes", times=2)
    with cluster_of() as cluster:
        cache = NodeCache(cluster, namespace="", needs_labels=False)
        with pytest.raises(ClusterUnavailable):
            cache.list()
        with pytest.raises(ClusterUnavailable):
            cache.read_for({"spec": {"nodeName": "kind-worker"}})


@pytest.mark.parametrize("namespace", ["", "shop"])
def test_labels_of_namespaces_are_looked_up_where_a_template_asks_for_them(
    api: KubernetesApi, namespace: str
) -> None:
    api.put({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"stage": "live"}}})
    with cluster_of(namespace=namespace) as cluster:
        cache = NodeCache(cluster, namespace=namespace, needs_labels=True)
        cache.list()
        cache.read_for(pod("web-0"))
        cache.read_for(pod("web-1"))
    assert cache.labels == {"shop": {"stage": "live"}}
    assert api.count("list", "namespaces") == (0 if namespace else 1)
    assert api.count("get", "namespaces") == (1 if namespace else 0)


def kubeconfig(folder: Path, url: str) -> Path:
    config = {
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url.rstrip("/")}}],
        "users": [{"name": "test", "user": {"token": "t"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path
