"""What is kept of pods suffices to see what changed, and whether a rollout was undone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pods import FOLDER, NAMING, digest_of, load, pod_of

from relay.kubernetes.pod import read_pod
from relay.kubernetes.pod_cache import PodCache
from relay.kubernetes.skip_reason import SkipReason

PODS = [path.stem for path in sorted(FOLDER.glob("*.json")) if load(path.stem).get("kind") == "Pod"]

OLD, NEW = "2026-03-02T10:00:00Z", "2026-03-02T11:00:00Z"


def running(digest: str, **parts: Any) -> dict[str, Any]:
    return pod_of(f"ghcr.io/acme/web@{digest_of(digest)}", **parts)


@pytest.mark.parametrize("name", PODS)
def test_a_pod_that_did_not_change_reports_nothing(name: str) -> None:
    pod, cache = load(name), PodCache()
    assert cache.before(pod) is None
    cache.add(pod)
    whole = read_pod(pod, NAMING, before=pod)
    kept = read_pod(pod, NAMING, before=cache.before(pod))
    assert (kept.events, kept.skipped) == (whole.events, whole.skipped)
    assert not kept.events


def test_another_digest_in_the_same_pod_is_read_as_with_the_whole_pod() -> None:
    before, after, cache = running("a"), running("b", started="2026-03-02T12:00:00Z"), PodCache()
    cache.add(before)
    assert read_pod(after, NAMING, before=cache.before(after)) == read_pod(after, NAMING, before=before)
    assert read_pod(after, NAMING, before=cache.before(after)).events[0].time.hour == 12  # type: ignore[union-attr]


def test_a_container_that_had_not_started_is_news_when_it_does() -> None:
    pod, cache = running("a"), PodCache()
    waiting = json.loads(json.dumps(pod))
    waiting["status"]["containerStatuses"][0] |= {"state": {"waiting": {}}, "imageID": ""}
    cache.add(waiting)
    assert len(read_pod(pod, NAMING, before=cache.before(pod)).events) == 1
    cache.add(pod)
    assert read_pod(pod, NAMING, before=cache.before(pod)).skipped == {SkipReason.UNCHANGED: 1}


def test_a_pod_that_is_gone_is_forgotten() -> None:
    pod, cache = running("a"), PodCache()
    cache.add(pod)
    cache.remove(pod)
    assert len(cache) == 0
    assert not cache._workloads
    assert cache.before(pod) is None


@pytest.mark.parametrize(
    ("gone", "left", "is_undone"),
    [
        (("b", NEW), [("a", OLD)], True),
        (("b", NEW), [("b", OLD), ("a", OLD)], True),
        (("a", NEW), [("a", OLD)], False),  # scaled down
        (("a", OLD), [("b", NEW)], False),  # rolled out
        (("b", NEW), [], False),
    ],
)
def test_a_rollout_is_undone_when_older_pods_with_another_image_are_left(
    gone: tuple[str, str], left: list[tuple[str, str]], *, is_undone: bool
) -> None:
    cache = PodCache()
    for number, (digest, created) in enumerate(left):
        cache.add(running(digest, created=created, name=f"web-5d-{number}"))
    pod = running(gone[0], created=gone[1], name="web-5d-gone")
    cache.add(pod)
    assert cache.remove(pod) is is_undone


def test_pods_that_have_other_containers_undo_nothing() -> None:
    """As a Ray cluster's head and its workers, which come and go."""
    cache, head = PodCache(), running("a", created=OLD, name="head")
    head["status"]["containerStatuses"][0]["name"] = "ray-head"
    worker = running("b", created=NEW, name="worker")
    cache.add(head)
    cache.add(worker)
    assert cache.remove(worker) is False


def test_a_new_pod_that_never_ran_undoes_nothing() -> None:
    cache, pod = PodCache(), running("b", created=NEW, name="web-5d-new")
    pod["status"]["containerStatuses"][0] |= {"state": {"waiting": {}}, "imageID": ""}
    cache.add(running("a", created=OLD))
    cache.add(pod)
    assert cache.remove(pod) is False


def test_what_is_kept_of_a_pod_is_small() -> None:
    cache = PodCache()
    cache.add(load("kind-deployment"))
    [kept] = cache._pods.values()
    assert len(kept) < 800
