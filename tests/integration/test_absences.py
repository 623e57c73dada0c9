"""Marks of instances that a cluster no longer runs: a resync omits them, and a later report removes the mark."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pytest
from pods import digest_of, pod_of
from runs import KEYS, make_runtime_for

from relay.errors import ClusterUnavailable
from relay.kubernetes.absences import Absences
from relay.kubernetes.cluster import Cluster
from relay.kubernetes.watcher import Watcher
from relay.producer.queue_producer import Producer
from relay.queue import forgetting, inventory
from relay.queue.resync import rehearse
from relay.settings import DEFAULT_DESTINATION, Settings
from workers.intake.run import run_intake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubernetes_api import KubernetesApi
    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis
    from workers.runtime import Runtime

ENVIRONMENT = "test/shop"
OUTBOX = KEYS.of_outbox(DEFAULT_DESTINATION, ENVIRONMENT)


@pytest.fixture
def runtime(redis_server: EmbeddedRedis, client: Redis) -> Iterator[Runtime]:
    made = make_runtime_for(redis_server, "http://127.0.0.1:1/")
    yield made
    made.close()


class Watch:
    """A watcher that lists at each turn, or follows."""

    def __init__(self, runtime: Runtime, **settings: Any) -> None:
        kubernetes = {"cluster": "test", "silence": 0.3, **settings}
        self.runtime = runtime
        self.settings = Settings.load(redis={"url": runtime.settings.redis.url}, kubernetes=kubernetes)
        self.cluster = Cluster(self.settings.kubernetes)
        self.producer = Producer(settings=self.settings)
        self.absences = Absences(self.settings)
        self.watcher = Watcher(
            self.cluster, self.producer, self.settings.kubernetes, absences=self.absences, is_patient=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        self.absences.close()
        self.producer.close()

    def list(self, times: int = 1) -> None:
        for _ in range(times):
            self.watcher._position = ""  # a listing is due
            self.watcher.run_once()
            run_intake(self.runtime)

    def follow(self) -> None:
        with contextlib.suppress(ClusterUnavailable):  # it was told nothing for `silence`, and that ends the turn
            self.watcher.run_once()
        run_intake(self.runtime)

    def gone(self) -> list[str]:
        """The names of instances that are gone."""
        pages = inventory.pages(self.runtime.client, KEYS, DEFAULT_DESTINATION, ENVIRONMENT)
        return sorted(each.instance.name for page in pages for each in page if each.gone_since is not None)


@pytest.fixture
def watch(api: KubernetesApi, runtime: Runtime) -> Iterator[Watch]:
    with Watch(runtime) as watch:
        yield watch


def pod(name: str, seed: str = "a") -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = pod_of(f"ghcr.io/acme/{name}@{digest_of(seed)}", image=f"ghcr.io/acme/{name}:1", name=name, created=now)
    del given["metadata"]["ownerReferences"]
    return given


def test_what_two_listings_in_a_row_do_not_have_is_gone(api: KubernetesApi, watch: Watch, client: Redis) -> None:
    api.put(pod("stays"))
    api.put(pod("leaves"))
    watch.list()
    api.delete(pod("leaves"))
    watch.list()
    assert watch.gone() == []
    watch.list()
    assert watch.gone() == ["shop/leaves/app"]
    [page] = list(inventory.pages(client, KEYS, DEFAULT_DESTINATION, ENVIRONMENT))
    [left] = [each for each in page if each.gone_since]
    assert left.gone_since is not None
    assert left.last_seen_at < left.gone_since <= forgetting.now_ms(client)
    assert 0 < client.pttl(OUTBOX.gone) <= watch.settings.delivery.forget_after * 1000
    done = list(rehearse(client, KEYS, DEFAULT_DESTINATION, ENVIRONMENT))[-1]
    assert (done.scanned, done.undelivered, done.gone, done.not_seen) == (2, 1, 1, 0)


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_comes_back_is_not_gone(api: KubernetesApi, watch: Watch, client: Redis, *, is_listed: bool) -> None:
    """Whether a listing or a watch tells, and though the same digest is reported again as a duplicate."""
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    watch.list(2)
    assert watch.gone() == ["shop/web/app"]
    api.put(pod("web"))
    if is_listed:
        watch.list()
    else:
        watch.follow()
    assert watch.gone() == []
    assert client.hlen(OUTBOX.gone) == 0
    api.delete(pod("web"))
    watch.list(2)
    assert watch.gone() == ["shop/web/app"]


def test_what_was_missing_once_is_counted_anew_after_it_was_seen(api: KubernetesApi, watch: Watch) -> None:
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    watch.list()
    api.put(pod("web"))
    watch.follow()
    api.delete(pod("web"))
    watch.list()
    assert watch.gone() == []


def test_any_later_report_voids_a_mark(api: KubernetesApi, watch: Watch, client: Redis) -> None:
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    watch.list(2)
    url = f"ghcr.io/acme/web@{digest_of('b')}"
    watch.producer.report(url, environment=ENVIRONMENT, name="shop/web/app")
    run_intake(watch.runtime)
    assert watch.gone() == []
    assert client.hlen(OUTBOX.gone) == 1


def test_a_listing_that_failed_does_not_count(api: KubernetesApi, watch: Watch) -> None:
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    watch.list()
    api.fail(500, verb="list", resource="pods")
    with pytest.raises(ClusterUnavailable):
        watch.list()
    watch.list()
    assert watch.gone() == []
    watch.list()
    assert watch.gone() == ["shop/web/app"]


@pytest.mark.parametrize("settings", [{"namespace": "shop"}, {"selector": "pod-template-hash"}])
def test_a_listing_of_a_part_does_not_count(api: KubernetesApi, runtime: Runtime, settings: dict[str, str]) -> None:
    with Watch(runtime, **settings) as watch:
        api.put(pod("web"))
        watch.list()
        api.delete(pod("web"))
        watch.list(3)
        assert watch.gone() == []


def test_a_listing_with_other_rights_does_not_count(api: KubernetesApi, watch: Watch) -> None:
    """Without nodes all platforms are others, and so are all instances."""
    node = {"kind": "Node", "metadata": {"name": "n1"}}
    api.put(node | {"status": {"nodeInfo": {"operatingSystem": "linux", "architecture": "arm64"}}})
    web = pod("web")
    web["spec"]["nodeName"] = "n1"
    api.put(web)
    watch.list()
    api.forbidden = {("list", "nodes"), ("get", "nodes")}
    watch.list(3)
    assert watch.gone() == []


def test_only_what_this_watcher_listed_is_marked(api: KubernetesApi, watch: Watch) -> None:
    api.put(pod("web"))
    url = f"ghcr.io/acme/other@{digest_of('a')}"
    watch.producer.report(url, environment=ENVIRONMENT, name="by a pipeline")
    watch.list(3)
    assert watch.gone() == []


def test_a_watcher_that_starts_anew_takes_marks_away(api: KubernetesApi, runtime: Runtime, watch: Watch) -> None:
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    watch.list(2)
    api.put(pod("web"))
    with Watch(runtime) as another:
        another.list()
        assert another.gone() == []


def test_forgetting_takes_marks_along(api: KubernetesApi, watch: Watch, client: Redis) -> None:
    api.put(pod("web"))
    api.put(pod("other"))
    watch.list()
    api.delete(pod("web"))
    watch.list(2)
    client.delete(OUTBOX.outbox)
    client.hset(OUTBOX.gone, "not known", 1)
    forgetting.forget_some(client, OUTBOX, is_selected=lambda key: "web" in key)
    assert client.hkeys(OUTBOX.gone) == [b"not known"]


@pytest.mark.parametrize("value", [b"", b"x", b"-1", b"99999999999999999999999"])
def test_a_mark_of_another_shape_harms_nothing(api: KubernetesApi, watch: Watch, client: Redis, value: bytes) -> None:
    api.put(pod("web"))
    watch.list()
    [instance] = client.hkeys(OUTBOX.accepted)
    client.hset(OUTBOX.gone, instance, value)
    assert watch.gone() == (["shop/web/app"] if value.isdigit() else [])


def test_a_redis_that_takes_no_marks_stops_no_listing(
    api: KubernetesApi, watch: Watch, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(pod("web"))
    watch.list()
    api.delete(pod("web"))
    client.set(OUTBOX.gone, "of another type")
    watch.list(2)
    assert "no longer runs are not marked" in caplog.text
    client.delete(OUTBOX.gone)
    watch.list()
    assert watch.gone() == ["shop/web/app"]
