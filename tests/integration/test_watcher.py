"""The watcher turn by turn, between an API server and a Redis: what it enqueues, and what it asks for."""

from __future__ import annotations

import json
import logging
import re
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pytest
from pods import digest_of, load, node_of, pod_of
from rig import wait_for

from relay.errors import ClusterUnavailable, ConfigurationError, QueueFull, QueueUnavailable
from relay.kubernetes import publishing
from relay.kubernetes import retry_policy as steps
from relay.kubernetes import watcher as module
from relay.kubernetes.cluster import Cluster
from relay.kubernetes.publishing import NodePublisher
from relay.kubernetes.watcher import LIST_AFTER_SETTLES, Watcher
from relay.producer.queue_producer import Producer
from relay.queue.keys import Keys
from relay.queue.nodes import LIFETIME_SECONDS, decode
from relay.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kubernetes_api import KubernetesApi
    from redis import Redis

    from relay.processes.embedded_redis import EmbeddedRedis

#: How long a turn may be told nothing: it ends it, as a failure that is got over at the next.
SILENCE_SECONDS = 0.3

LONG_AGO = "2026-03-02T10:00:00Z"


class Watch:
    """A watcher and what came of it."""

    def __init__(self, redis_url: str, client: Redis, *, is_patient: bool = True, **settings: Any) -> None:
        kubernetes = {"cluster": "test", "silence": SILENCE_SECONDS, "settle": 0.001, **settings}
        self.settings = Settings.load(redis={"url": redis_url}, kubernetes=kubernetes)
        self.client = client
        self.producer = Producer(settings=self.settings)
        self.cluster = Cluster(self.settings.kubernetes)
        self.publisher = NodePublisher(self.settings)
        self.watcher = Watcher(
            self.cluster, self.producer, self.settings.kubernetes, publisher=self.publisher, is_patient=is_patient
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        self.publisher.close()
        self.producer.close()

    def turn(self, times: int = 1) -> list[str]:
        """Take turns; return what is reported by then."""
        for _ in range(times):
            self.watcher.run_once()
        return self.reported()

    def bodies(self) -> list[Any]:
        return [json.loads(fields[b"event"]) for _, fields in self.client.xrange("{relay:0}:inbox")]

    def reported(self) -> list[str]:
        """What their digests were made of, in the order of the inbox."""
        return [_SEEDS[body["image"]["url"].partition("@")[2]] for body in self.bodies()]

    def nodes(self, cluster: str = "test") -> dict[str, str] | None:
        """What is published of the cluster's nodes."""
        found = decode(self.client.get(Keys().nodes(cluster)) or b"")
        return {name: str(each) for name, each in found.platforms.items()} if found.is_alive else None

    def times(self) -> list[str]:
        return [fields[b"time"].decode() for _, fields in self.client.xrange("{relay:0}:inbox")]


_SEEDS = {digest_of(seed): seed for seed in "abcdefgh"}


@pytest.fixture
def watch(api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis) -> Iterator[Watch]:
    with Watch(redis_server.url, client) as watch:
        yield watch


def web(seed: str, name: str | None = None, **parts: Any) -> dict[str, Any]:
    """A Deployment's pod that is created now."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = {"created": now, "started": now} | parts
    return pod_of(f"ghcr.io/acme/web@{digest_of(seed)}", name=name or f"web-5d-{seed}", **given)


def test_what_runs_is_reported_and_then_what_changes(api: KubernetesApi, watch: Watch) -> None:
    api.put(web("a"))
    assert watch.turn() == ["a"]
    api.put(web("b"))
    assert watch.turn() == ["a", "b"]
    assert watch.bodies()[1] == {
        "image": {"url": f"ghcr.io/acme/web@{digest_of('b')}", "name": "shop/web/app"},
        "environment": {"name": "test/shop"},
    }
    assert watch.client.xrange("{relay:0}:inbox")[1][1][b"source"] == b"test"


def test_pods_as_distributions_give_them_are_reported(api: KubernetesApi, watch: Watch) -> None:
    for name in ("kind-deployment", "eks-deployment", "gke-statefulset", "openshift-deploymentconfig"):
        pod = load(name)
        api.put(node_of(pod))
        api.put(pod)
    api.put(load("eks-node"))
    watch.watcher.run_once()
    assert {(body["image"]["name"], body.get("platform", {}).get("architecture")) for body in watch.bodies()} == {
        ("shop/web/nginx", None),
        ("payments/payments-api/api", "arm64"),
        ("shop/cache/redis", "amd64"),
        ("legacy/billing/billing", None),
    }


def test_a_status_that_says_nothing_new_is_not_reported(api: KubernetesApi, watch: Watch) -> None:
    pod = web("a")
    api.put(pod)
    watch.turn()
    for number in range(20):
        pod["status"]["conditions"] = [{"type": "Ready", "message": str(number)}]
        api.put(pod)
    assert watch.turn() == ["a"]
    api.put(web("b", name=pod["metadata"]["name"]))
    api.put(web("b", name=pod["metadata"]["name"]))
    assert watch.turn() == ["a", "b"]


def test_another_digest_in_a_pod_that_stays_is_as_old_as_its_container(api: KubernetesApi, watch: Watch) -> None:
    """Else it would be as old as the pod, and stale once a younger pod has spoken."""
    api.put(web("a", name="web-5d-x", created=LONG_AGO))
    watch.turn()
    api.put(web("b", name="web-5d-x", created=LONG_AGO, started="2026-03-02T12:00:00Z"))
    watch.turn()
    assert watch.times()[-1] == "2026-03-02T12:00:00+00:00"


def test_a_snapshot_comes_when_its_time_has_come(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis
) -> None:
    api.put(web("a"))
    with Watch(redis_server.url, client, snapshot_interval=1, silence=30) as watch:
        assert watch.turn() == ["a"]
        assert watch.turn() == ["a"]  # follows, for a second
        assert watch.turn() == ["a", "a"]
        assert api.last("watch").query["timeoutSeconds"] == "1"


def test_it_resumes_from_the_last_change_that_it_reported(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()
    api.put(web("a"))
    place = api.version
    assert watch.turn() == ["a"]
    api.put(web("b"))
    assert watch.turn() == ["a", "b"]
    assert api.last("watch").query["resourceVersion"] == place
    assert api.count("list") == 1


def test_bookmarks_move_the_place_that_it_resumes_from(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()
    for _ in range(5):
        api.put({"kind": "Namespace", "metadata": {"name": "other"}})  # nothing that a watch of pods is told
    bookmark = api.version
    with told_while_open(api, api.bookmark):
        watch.turn()
    api.forget()  # up to the bookmark: from where it began it could not go on
    api.put(web("a"))
    assert watch.turn() == ["a"]
    assert api.last("watch").query == api.last("watch").query | {
        "allowWatchBookmarks": "true",
        "resourceVersion": bookmark,
    }
    assert api.count("list") == 1


@pytest.mark.parametrize("said_by", ["event", "status"])
def test_what_happened_in_a_gap_is_found_by_a_new_listing(api: KubernetesApi, watch: Watch, said_by: str) -> None:
    api.put(web("a", created=LONG_AGO))
    watch.turn()
    api.says_gone_by = said_by
    api.put(web("b"))
    api.forget()
    watch.turn()
    assert watch.turn() == ["a", "b"]
    assert (api.count("list"), api.count("watch")) == (2, 1)
    api.put(web("c"))
    assert watch.turn() == ["a", "b", "c"]


def test_a_listing_after_a_gap_is_made_at_once_whatever_failed_before(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(web("a", created=LONG_AGO))
    watch.turn()
    monkeypatch.setattr(steps, "PAUSE_SECONDS", (0.001, 0.002))
    api.fail(500, times=4, verb="watch")
    watch.turn(4)
    monkeypatch.setattr(steps, "PAUSE_SECONDS", (3600.0, 3600.0))
    api.put(web("b"))
    api.forget()
    watch.turn()
    assert "410" in caplog.text
    assert watch.turn() == ["a", "b"]


def test_a_place_that_is_gone_again_and_again_is_not_listed_without_a_pause(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "PAUSE_SECONDS", (0.001, 0.002))
    watch.turn()
    for _ in range(3):
        api.put(web("a"))
        api.forget()
        watch.turn(2)
    api.fail(410, verb="watch", times=3)
    watch.turn(6)
    pauses = re.findall(r"list again in (\S+) s", caplog.text)
    assert len(pauses) >= 3
    assert watch.watcher._was_gone


def test_a_half_open_link_is_noticed(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()

    def dies() -> None:
        api.mute()
        api.put(web("a"))

    with told_while_open(api, dies):
        assert watch.turn() == []
    assert watch.turn() == ["a"]
    assert api.count("list") == 1


@pytest.mark.parametrize("line", [b'{"type": "ADDED", "obj\n', b"<html>\n", b"[]\n"])
def test_a_line_that_cannot_be_read_costs_no_change(api: KubernetesApi, watch: Watch, line: bytes) -> None:
    watch.turn()

    def happens() -> None:
        api.put(web("a"))
        api.say(line)
        api.put(web("b"))

    with told_while_open(api, happens):
        watch.turn()
    assert watch.turn() == ["a", "b"]
    assert api.count("list") == 1


def test_a_kind_of_change_that_is_not_known_is_passed_over(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()
    with told_while_open(api, lambda: api.say(b'{"type": "NEWS", "object": {"metadata": {}}}\n{"type": 7}\n{}\n')):
        watch.turn()
    api.put(web("a"))
    assert watch.turn() == ["a"]


def test_a_listing_whose_moment_is_forgotten_is_begun_again(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis
) -> None:
    for seed in "abc":
        api.put(web(seed, name=f"{seed}-5d-x", image=f"ghcr.io/acme/{seed}:1"))
    api.fail(410, verb="list", continued=True)
    with Watch(redis_server.url, client, page_size=1) as watch:
        assert watch.turn() == []
        assert sorted(watch.turn()) == ["a", "b", "c"]
    asked = [each.query.get("continue") for each in api.asked if (each.verb, each.resource) == ("list", "pods")]
    assert [each is None for each in asked] == [True, False, True, False, False]


def test_a_server_that_is_restarted_costs_nothing(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()
    api.stop()
    api.put(web("a"))
    assert watch.turn() == []
    api.start()
    assert watch.turn() == ["a"]
    assert api.count("list") == 1


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize("status", [401, 403, 429, 500, 504])
def test_a_server_that_fails_now_and_then_is_asked_again(
    api: KubernetesApi, watch: Watch, status: int, verb: str
) -> None:
    api.fail(status, times=1, verb=verb)
    api.put(web("a"))
    watch.turn(2 if verb == "list" else 1)
    api.put(web("b"))
    assert watch.turn(2 if verb == "watch" else 1) == ["a", "b"]


def test_a_watch_that_ends_as_soon_as_it_begins_is_not_asked_for_at_once(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    watch.turn()
    with told_while_open(api, api.cut):
        watch.turn()
    assert "resume in" in caplog.text


def test_a_watch_that_fails_again_and_again_is_replaced_by_a_listing(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after etcd was restored from a backup: versions begin again below ours, and ours means nothing."""
    monkeypatch.setattr("relay.kubernetes.retry_policy.PAUSE_SECONDS", (0.01, 0.01))
    api.put(web("a", created=LONG_AGO))
    watch.turn()
    api._version = api._forgotten = 500
    api.put(web("b"))
    watch.turn(5)
    assert watch.turn() == ["a", "b"]
    assert (api.count("watch"), api.count("list")) == (5, 2)


def test_a_listing_that_fails_later_on_is_made_again_while_it_follows(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_AGAIN_SECONDS", 1)
    api.put(web("a"))
    watch.turn()
    watch.watcher._list_at = 0
    api.fail(429, verb="list")
    watch.turn()
    api.put(web("b"))
    assert watch.turn() == ["a", "b"]
    wait_for(lambda: bool(watch.turn()) and api.count("list") == 3, 20)


def test_retry_after_is_waited_for(api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    api.fail(429, verb="list", retry_after=1)
    watch.turn()
    assert "list again in 1.0 s" in caplog.text


def test_a_token_that_expired_is_read_again(api: KubernetesApi, watch: Watch, tmp_path: Path) -> None:
    watch.turn()
    api.token = "rotated-token-of-the-tests"
    api.put(web("a"))
    api.kubeconfig(tmp_path / "kubeconfig")
    watch.turn()
    assert watch.turn() == ["a"]
    assert api.count("list") == 1


def test_the_platform_is_the_nodes_even_of_one_that_joins_later(api: KubernetesApi, watch: Watch) -> None:
    node = load("eks-node")
    api.put(node)
    api.put(web("a", spec={"nodeName": node["metadata"]["name"], "containers": CONTAINERS}))
    watch.turn()
    info = {"architecture": "s390x", "operatingSystem": "linux"}
    api.put({"kind": "Node", "metadata": {"name": "new"}, "status": {"nodeInfo": info}})
    api.put(web("b", spec={"nodeName": "new", "containers": CONTAINERS}))
    watch.turn()
    assert [body["platform"]["architecture"] for body in watch.bodies()] == ["arm64", "s390x"]


CONTAINERS = [{"name": "app", "image": "ghcr.io/acme/web:1"}]


def test_pods_of_a_node_that_is_gone_run_nowhere(api: KubernetesApi, watch: Watch) -> None:
    """Their status says that they run until they are deleted, and their platform is unknown."""
    here = {"kind": "Node", "metadata": {"name": "here"}}
    api.put(here)
    api.put(web("a", name="web-5d-a", spec={"nodeName": "gone", "containers": CONTAINERS}))
    api.put(web("b", name="web-5d-b", spec={"nodeName": "here", "containers": CONTAINERS}))
    assert watch.turn() == ["b"]
    api.put(web("c", name="web-5d-c", spec={"nodeName": "gone, too", "containers": CONTAINERS}))
    assert watch.turn() == ["b"]


def test_a_node_that_cannot_be_asked_for_just_now_holds_the_place(api: KubernetesApi, watch: Watch) -> None:
    watch.turn()
    info = {"architecture": "s390x", "operatingSystem": "linux"}
    api.put({"kind": "Node", "metadata": {"name": "new"}, "status": {"nodeInfo": info}})
    api.put(web("a", spec={"nodeName": "new", "containers": CONTAINERS}))
    api.fail(500, resource="nodes", verb="get")
    api.fail(500, resource="nodes", verb="get")
    assert watch.turn(2) == []
    assert watch.watcher._failures == 2, "what could not be taken was counted as heard, and its pause never grows"
    watch.turn()
    assert [body["platform"]["architecture"] for body in watch.bodies()] == ["s390x"]


def test_without_rights_for_nodes_it_says_so_and_goes_on(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    api.forbidden = {("list", "nodes"), ("get", "nodes")}
    api.put(web("a", spec={"nodeName": "n", "containers": CONTAINERS}))
    assert watch.turn() == ["a"]
    assert "continuing without nodes" in caplog.text


def test_environments_may_be_named_by_labels_of_their_namespaces(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis
) -> None:
    api.put({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"stage": "live"}}})
    api.put(web("a"))
    with Watch(redis_server.url, client, environment_template="{namespace_labels[stage]}") as watch:
        watch.turn()
        api.put(web("b"))
        watch.turn()
        assert [body["environment"]["name"] for body in watch.bodies()] == ["live", "live"]


def test_a_rollout_that_was_undone_is_reported_as_what_is_left(api: KubernetesApi, watch: Watch) -> None:
    """No pod that is left says so by itself: it said what it runs long ago."""
    api.put(web("a", created=LONG_AGO))
    watch.turn()
    new = web("b")
    api.put(new)
    api.delete(new)
    assert watch.turn() == ["a", "b"]
    assert watch.turn(2) == ["a", "b", "a"]  # it may follow on until the pods have settled
    assert watch.times()[2] >= watch.times()[1]


def test_listings_that_are_brought_forward_are_some_time_apart(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis
) -> None:
    api.put(web("a", created=LONG_AGO))
    with Watch(redis_server.url, client, settle=5) as watch:
        watch.turn()
        new = web("b")
        api.put(new)
        api.delete(new)
        watch.turn()
        assert watch.watcher._list_at - watch.watcher._listed_at == LIST_AFTER_SETTLES * 5


def test_a_rolling_update_brings_no_listing_forward(api: KubernetesApi, watch: Watch) -> None:
    old = web("a", created=LONG_AGO)
    api.put(old)
    watch.turn()
    api.put(web("b"))
    api.delete(old)
    watch.turn(2)
    assert api.count("list") == 1


def test_a_place_is_left_only_once_redis_has_the_event(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the queue is full, the change is in hand, and later ones stay with the API server."""
    queue = watch.settings.queue.model_copy(update={"max_backlog": 1})
    api.put(web("a"))
    watch.turn()
    watch.producer._settings = watch.settings.model_copy(update={"queue": queue})
    for seed in "bcd":
        api.put(web(seed))
    turning = threading.Thread(target=watch.turn)
    turning.start()
    seen = ["a"]
    for seed in "bcd":
        wait_for(lambda: caplog.text.count("the queue is full") >= len(seen), 20)
        [(first, _)] = watch.client.xrange("{relay:0}:inbox")
        watch.client.xdel("{relay:0}:inbox", first)
        wait_for(lambda: watch.reported() == [seed], 40, lambda: f"{watch.reported()}")  # noqa: B023 - called here
        seen.append(seed)
    turning.join(30)
    assert not turning.is_alive()
    assert api.count("list") == 1


def test_an_event_that_was_tried_twice_has_one_id(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was enqueued though its answer was lost counts once."""
    monkeypatch.setattr("relay.kubernetes.retry_policy.PAUSE_SECONDS", (0.01, 0.01))
    report, lost = watch.producer.report_many, ["answer"]

    def forgetful(events: Any) -> list[str]:
        ids = report(events)
        if lost:
            raise QueueUnavailable(f"the {lost.pop()} was lost")
        return ids

    monkeypatch.setattr(watch.producer, "report_many", forgetful)
    api.put(web("a"))
    assert watch.turn() == ["a", "a"]
    assert len({fields[b"id"] for _, fields in watch.client.xrange("{relay:0}:inbox")}) == 1


@pytest.mark.parametrize("status", [400, 422])
def test_a_question_that_the_server_does_not_take_ends_it(api: KubernetesApi, watch: Watch, status: int) -> None:
    api.fail(status, message="unable to parse requirement")
    with pytest.raises(ConfigurationError, match="unable to parse requirement"):
        watch.turn()


def test_one_that_is_not_patient_raises(api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis) -> None:
    api.put(web("a"))
    with Watch(redis_server.url, client, is_patient=False) as watch:
        api.fail(503)
        with pytest.raises(ClusterUnavailable, match="503"):
            watch.turn()
        client.xadd("{relay:0}:inbox", {"event": "x"})
        queue = watch.settings.queue.model_copy(update={"max_backlog": 1})
        watch.producer._settings = watch.settings.model_copy(update={"queue": queue})
        with pytest.raises(QueueFull):
            watch.turn()


def test_the_log_says_one_line_a_snapshot_and_none_an_event(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relay.watch")
    for number in range(3):
        api.put(web("a", name=f"web-5d-{number}"))
    watch.turn()
    [said] = caplog.messages
    assert said.startswith("snapshot: 3 pods, 1 events, skipped: replica 2, in ")
    caplog.clear()
    api.put(web("b"))
    watch.turn()
    assert not any("snapshot" in each for each in caplog.messages)
    watch.watcher._list_at = 0
    watch.turn()
    assert caplog.messages[-1].endswith("followed before: 1 changes, 1 events")


def test_nothing_that_is_said_has_the_token(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.fail(500, times=1)
    watch.turn(2)
    api.stop()
    watch.turn()
    assert len(caplog.messages) >= 3
    assert api.token not in caplog.text


def test_the_heartbeat_is_touched_while_it_waits(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    file = tmp_path / "alive"
    with Watch(redis_server.url, client, heartbeat_file=file) as watch:
        first = file.stat().st_mtime_ns
        api.fail(503, retry_after=2)
        watch.turn()
        assert file.stat().st_mtime_ns > first


def test_a_heartbeat_that_cannot_be_written_is_said_at_the_start(
    api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="heartbeat_file"):
        Watch(redis_server.url, client, heartbeat_file=tmp_path / "nowhere" / "alive")


class told_while_open:  # noqa: N801 - reads as a phrase
    """Does something as soon as a watch is open, while the test's own thread follows it."""

    def __init__(self, api: KubernetesApi, act: Any) -> None:
        self._thread = threading.Thread(target=self._run, args=(api, act))
        self._failed: BaseException | None = None

    def _run(self, api: KubernetesApi, act: Any) -> None:
        try:
            wait_for(lambda: api.watches > 0, 20)
            act()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self._failed = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        if self._failed:
            raise self._failed


# Platforms for the webhook


def node(name: str, architecture: str, os: str = "linux") -> dict[str, Any]:
    info = {"operatingSystem": os, "architecture": architecture}
    return {"kind": "Node", "metadata": {"name": name}, "status": {"nodeInfo": info}}


def test_platforms_of_nodes_are_published_before_what_runs(api: KubernetesApi, watch: Watch) -> None:
    api.put(node("n1", "amd64"))
    api.put(node("n2", "arm64"))
    api.put(node("n3", "amd64", os="windows"))
    api.put({"kind": "Node", "metadata": {"name": "n4"}})
    api.fail(500, verb="list", resource="pods")
    watch.turn()
    assert watch.nodes() == {"n1": "linux/amd64", "n2": "linux/arm64", "n3": "windows/amd64"}
    assert 0 < watch.client.pttl(Keys().nodes("test")) <= LIFETIME_SECONDS * 1000


def test_a_new_node_is_published_and_what_was_lost_is_published_again(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PAUSE_SECONDS", 0.0)
    api.put(node("n1", "amd64"))
    watch.turn()
    api.put(node("n2", "arm64"))
    api.put(web("a", spec={"nodeName": "n2"}))
    watch.turn(2)
    assert watch.nodes() == {"n1": "linux/amd64", "n2": "linux/arm64"}
    monkeypatch.setattr(publishing.nodes, "REFRESH_SECONDS", 0.0)
    watch.client.delete(Keys().nodes("test"))
    watch.turn()
    assert watch.nodes() == {"n1": "linux/amd64", "n2": "linux/arm64"}


def test_clusters_have_maps_of_their_own(api: KubernetesApi, redis_server: EmbeddedRedis, client: Redis) -> None:
    for cluster, architecture in (("one", "amd64"), ("two", "arm64"), ("none", "s390x")):
        api.put(node("n1", architecture))
        with Watch(redis_server.url, client, cluster=cluster) as watch:
            watch.turn()
    assert [watch.nodes(name) for name in ("one", "two", "")] == [
        {"n1": "linux/amd64"},
        {"n1": "linux/arm64"},
        {"n1": "linux/s390x"},
    ]


def test_without_a_right_for_nodes_none_are_published(api: KubernetesApi, watch: Watch) -> None:
    """The webhook then guesses as the watcher does."""
    api.forbidden = {("list", "nodes"), ("get", "nodes")}
    api.put(web("a", spec={"nodeName": "n1"}))
    assert watch.turn() == ["a"]
    assert watch.nodes() is None


def test_more_nodes_than_a_map_may_have_are_not_published(
    api: KubernetesApi, watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publishing.nodes, "MAX_NODES", 1)
    api.put(node("n1", "amd64"))
    api.put(node("n2", "arm64"))
    watch.turn()
    assert watch.nodes() is None
    assert "2 nodes are more than the 1 of a map" in caplog.text


def test_a_map_that_cannot_be_written_stops_no_report(
    api: KubernetesApi, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(node("n1", "amd64"))
    api.put(web("a", spec={"nodeName": "n1"}))
    away = watch.settings.model_copy(
        update={"redis": watch.settings.redis.model_copy(update={"url": "redis://127.0.0.1:1"})}
    )
    watch.watcher._publisher = NodePublisher(away)
    assert watch.turn() == ["a"]
    assert watch.nodes() is None
    assert "not published for the webhook" in caplog.text
