"""`relay watch kubernetes` as a process, from an API server to the reporting API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes_api import KubernetesApi
from pods import digest_of, load, node_of, pod_of
from rig import wait_for

from relay.processes.supervisor import Child
from relay.queue import nodes
from relay.settings import DEFAULT_DESTINATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rig import Estate

#: How long things may take on a machine that does much else.
DEADLINE_SECONDS = 60

LONG_AGO = "2026-03-02T10:00:00Z"


class Watch:
    """A watcher's process between a cluster and a relay."""

    def __init__(self, cluster: KubernetesApi, estate: Estate, folder: Path) -> None:
        self.cluster = cluster
        self.estate = estate
        self.kubeconfig = cluster.kubeconfig(folder / "kubeconfig")
        self._log_path = folder / "watcher.log"
        self.child: Child | None = None

    def start(self, *arguments: str, **settings: str) -> Child:
        environment = {
            "KUBECONFIG": str(self.kubeconfig),
            "NO_PROXY": "127.0.0.1",
            "CLUSTER_NAME": "test",
            "RELAY_REDIS__CONNECT_TIMEOUT": "500ms",
            "RELAY_REDIS__TIMEOUT": "1s",
            **{f"RELAY_KUBERNETES__{name.upper()}": value for name, value in settings.items()},
        }
        argv = [sys.executable, "-m", "relay", "watch", "kubernetes", *arguments]
        whole = {**os.environ, **self.estate.stack.environment, **environment}
        self.child = Child("watcher", argv, env=whole, log_path=self._log_path)
        return self.child

    def follow(self, *arguments: str, **settings: str) -> Child:
        """Start it, and wait until it follows."""
        child = self.start(*arguments, **settings)
        self.wait(lambda: self.cluster.watches == 1)
        return child

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, DEADLINE_SECONDS, lambda: f"{self.delivered()}\n{self.log()}")

    def wait_for_log(self, text: str, *, times: int = 1) -> None:
        wait_for(lambda: self.log().count(text) >= times, DEADLINE_SECONDS, self.log)

    def wait_delivered(self, *seeds: str) -> None:
        """Wait until exactly these were delivered, in this order."""
        self.wait(lambda: self.delivered() == list(seeds))

    def delivered(self) -> list[str]:
        """What the digests that the API got were made of."""
        urls = [request.event["image"]["url"] for request in self.estate.api.requests]
        return [_SEEDS.get(url.partition("@")[2], url) for url in urls]

    def log(self) -> str:
        return self._log_path.read_text() if self._log_path.exists() else ""

    def code(self) -> int:
        """Return how it ended."""
        assert self.child is not None
        end = self.child.wait(DEADLINE_SECONDS)
        assert end is not None, f"it runs on\n{self.log()}"
        return end.code


_SEEDS = {digest_of(seed): seed for seed in "abcdefgh"}


@pytest.fixture
def cluster() -> Iterator[KubernetesApi]:
    with KubernetesApi() as cluster:
        yield cluster


@pytest.fixture
def watch(cluster: KubernetesApi, estate: Estate, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(cluster, estate, tmp_path)
    yield watch
    if watch.child is not None:
        watch.child.kill()
    assert cluster.token not in watch.log()
    assert "Traceback" not in watch.log()


def web(seed: str, name: str | None = None, **parts: Any) -> dict[str, Any]:
    """A Deployment's pod that is created now."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    given = {"created": now, "started": now} | parts
    return pod_of(f"ghcr.io/acme/web@{digest_of(seed)}", name=name or f"web-5d-{seed}", **given)


def test_a_cluster_arrives_once_and_a_rolling_update_once_for_each_digest(
    cluster: KubernetesApi, estate: Estate, watch: Watch
) -> None:
    """And the snapshots that come again and again cost no POST."""
    for name in ("kind-deployment", "eks-deployment", "gke-statefulset", "openshift-deploymentconfig"):
        pod = load(name)
        cluster.put(node_of(pod))
        cluster.put(pod)
    cluster.put(load("eks-node"))
    old = [web("a", name=f"web-5d-{number}", created=LONG_AGO, image="ghcr.io/acme/shop:1") for number in range(3)]
    for pod in old:
        cluster.put(pod)
    estate.start_worker()
    watch.start(snapshot_interval="1s")
    watch.wait(lambda: watch.log().count("snapshot: 7 pods, 5 events, skipped: ") >= 2)
    assert estate.wait_until_done(10).delivered == 5
    for number, pod in enumerate(old):
        cluster.put(web("b", name=f"web-6e-{number}", image="ghcr.io/acme/shop:2"))
        cluster.delete(pod)
    watch.wait(lambda: "b" in watch.delivered())
    snapshots = watch.log().count("snapshot: 7 pods")
    watch.wait(lambda: watch.log().count("snapshot: 7 pods") >= snapshots + 3)
    counters = estate.wait_until_done(20)
    assert (counters.delivered, counters.unaccounted, len(estate.api.requests)) == (6, 0, 6)
    assert [each for each in watch.delivered() if len(each) == 1] == ["a", "b"]
    assert counters.duplicate >= 10
    # The process publishes what the webhook looks up, and marks what a resync leaves out.
    node = load("eks-node")["metadata"]["name"]
    published = nodes.decode(estate.client.get(estate.keys.nodes("test")) or b"")
    assert str(published.platforms[node]) == "linux/arm64"
    cluster.delete(load("gke-statefulset"))
    watch.wait(lambda: bool(estate.client.exists(estate.keys.of_outbox(DEFAULT_DESTINATION, "test/shop").gone)))
    said = relay("resync", "test/shop", "--dry-run", RELAY_REDIS_URL=estate.stack.redis_url)
    assert "1 left out, gone from their cluster" in said.stdout, said


def test_a_rollout_that_is_undone_is_told_though_no_pod_says_so(
    cluster: KubernetesApi, estate: Estate, watch: Watch
) -> None:
    estate.start_worker()
    cluster.put(web("a", created=LONG_AGO))
    watch.follow(settle="100ms")
    new = web("b")
    cluster.put(new)
    watch.wait_delivered("a", "b")
    cluster.delete(new)
    watch.wait_delivered("a", "b", "a")


def test_nothing_is_lost_while_the_link_dies_and_the_servers_memory_is_short(
    cluster: KubernetesApi, estate: Estate, watch: Watch
) -> None:
    estate.start_worker()
    cluster.put(web("a", created=LONG_AGO))
    watch.follow(silence="1s")
    cluster.mute()
    cluster.put(web("b", created="2026-03-02T11:00:00Z"))
    cluster.forget()
    watch.wait_delivered("a", "b")
    assert cluster.count("list") == 2
    watch.wait(lambda: cluster.watches == 1)
    cluster.cut()
    cluster.put(web("c"))
    watch.wait_delivered("a", "b", "c")


def test_nothing_is_lost_while_the_api_server_is_away(cluster: KubernetesApi, estate: Estate, watch: Watch) -> None:
    estate.start_worker()
    cluster.put(web("a", created=LONG_AGO))
    cluster.stop()
    watch.start()
    watch.wait(lambda: "list again in" in watch.log())
    cluster.start()
    watch.wait_delivered("a")
    watch.wait(lambda: cluster.watches == 1)
    cluster.stop()
    cluster.put(web("b"))
    watch.wait(lambda: "resume in" in watch.log())
    cluster.start()
    watch.wait_delivered("a", "b")


def test_nothing_is_lost_while_redis_is_away(cluster: KubernetesApi, estate: Estate, watch: Watch) -> None:
    redis = estate.stack._embedded
    assert redis is not None
    cluster.put(web("a", created=LONG_AGO))
    redis.kill()
    watch.start()
    watch.wait_for_log("1 events wait")
    redis.restart()
    estate.client.config_set("appendfsync", "always")
    watch.wait(lambda: cluster.watches == 1)
    redis.kill()
    for seed in "bcd":
        cluster.put(web(seed))
    waited = watch.log().count("events wait")
    watch.wait_for_log("events wait", times=waited + 2)
    redis.restart()
    estate.start_worker()
    watch.wait(lambda: watch.delivered()[-1:] == ["d"])
    assert watch.delivered() == ["a", "b", "c", "d"]


def test_a_token_that_is_rotated_is_read_again(cluster: KubernetesApi, estate: Estate, watch: Watch) -> None:
    estate.start_worker()
    watch.follow()
    cluster.token = "rotated-token-of-the-tests"
    cluster.cut()
    watch.wait_for_log("401")
    cluster.put(web("a"))
    cluster.kubeconfig(watch.kubeconfig)
    watch.wait_delivered("a")
    assert cluster.count("list") == 1


@pytest.mark.parametrize(
    ("number", "situation"),
    [
        (signal.SIGTERM, "following"),
        (signal.SIGINT, "following"),
        (signal.SIGTERM, "told nothing"),
        (signal.SIGTERM, "no API server"),
        (signal.SIGTERM, "no Redis"),
    ],
)
def test_a_signal_ends_it_with_0_whatever_it_waits_for(
    cluster: KubernetesApi, estate: Estate, watch: Watch, situation: str, number: int
) -> None:
    cluster.put(web("a"))
    if situation == "no API server":
        cluster.stop()
    if situation == "no Redis":
        assert estate.stack._embedded is not None
        estate.stack._embedded.kill()
    child = watch.start()
    if situation.startswith("no "):
        watch.wait_for_log(" in ", times=3)
    else:
        watch.wait(lambda: cluster.watches == 1)
    if situation == "told nothing":
        cluster.mute()
    child.signal(number)
    end = child.wait(10)
    assert end is not None, "it runs on"
    assert end.code == 0, watch.log()


def test_the_heartbeat_goes_on_while_the_api_server_is_away(
    cluster: KubernetesApi, watch: Watch, tmp_path: Path
) -> None:
    file = tmp_path / "alive"
    cluster.stop()
    watch.start("--heartbeat", str(file))
    watch.wait_for_log("list again in")
    for _ in range(2):
        then = file.stat().st_mtime_ns
        watch.wait(lambda: file.stat().st_mtime_ns > then)  # noqa: B023 - called here


@pytest.mark.parametrize(
    ("situation", "code"),
    [
        ("well", 0),
        ("no rights", 69),
        ("wrong selector", 2),
        ("queue full", 75),
        ("no Redis", 69),
    ],
)
def test_once_reports_what_runs_and_ends_with_a_code_that_says_how_it_went(
    cluster: KubernetesApi, estate: Estate, watch: Watch, situation: str, code: int
) -> None:
    cluster.put(web("a"))
    match situation:
        case "no rights":
            cluster.forbidden = {("list", "pods")}
        case "wrong selector":
            cluster.fail(400, message="unable to parse requirement")
        case "queue full":
            estate.xadd("{}")
            estate.stack.environment["RELAY_QUEUE__MAX_BACKLOG"] = "1"
        case "no Redis":
            assert estate.stack._embedded is not None
            estate.stack._embedded.kill()
    watch.start("--once")
    assert watch.code() == code, watch.log()
    if situation == "well":
        assert estate.client.xlen(estate.keys.inbox) == 1
        assert cluster.count("watch") == 0
    else:
        assert "\nrelay: " in "\n" + watch.log()


def relay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_no_cluster_is_a_usage_error_that_says_what_to_do() -> None:
    done = relay("watch", "kubernetes", KUBECONFIG="/nowhere")
    assert (done.returncode, "set KUBECONFIG" in done.stderr) == (2, True)


def test_a_cluster_without_a_name_is_a_usage_error_that_says_what_to_do(
    cluster: KubernetesApi, tmp_path: Path
) -> None:
    kubeconfig = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
    done = relay("watch", "kubernetes", "--once", KUBECONFIG=kubeconfig, CLUSTER_NAME="")
    assert (done.returncode, "set CLUSTER_NAME" in done.stderr, "'none'" in done.stderr) == (2, True, True)
    done = relay("watch", "kubernetes", "--once", KUBECONFIG="/nowhere", CLUSTER_NAME="")
    assert (done.returncode, "set CLUSTER_NAME" in done.stderr) == (2, True)
    assert cluster.count("list") == 0


def test_a_heartbeat_that_cannot_be_written_is_a_usage_error(cluster: KubernetesApi, tmp_path: Path) -> None:
    kubeconfig = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
    done = relay("watch", "kubernetes", "--heartbeat", "/nowhere/alive", KUBECONFIG=kubeconfig)
    assert (done.returncode, "heartbeat_file" in done.stderr) == (2, True)


def test_a_missing_extra_is_said_with_the_line_that_installs_it(tmp_path: Path) -> None:
    """A finder that does not find it stands for an environment without it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'kubernetes' else find(name, package)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = relay("watch", "kubernetes", PYTHONPATH=path)
    assert done.returncode == 2
    assert "pip install 'deployment-relay[kubernetes]'" in done.stderr


def test_help_shows_the_way() -> None:
    assert "kubernetes" in relay("watch", "--help").stdout
    assert "CLUSTER_NAME=prod-eu-1 relay watch kubernetes" in relay("watch", "kubernetes", "--help").stdout
