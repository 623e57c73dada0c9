"""What pods report, alone and one after another."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pods import FOLDER, NAMING, digest_of, load, naming, pod_of

from relay.events.event import Defaults, DeploymentEvent
from relay.events.platform import Platform, parse_platform
from relay.kubernetes import json_access
from relay.kubernetes.node import platform_of_node
from relay.kubernetes.pod import MAX_CONTAINERS, MAX_NAME_CHARACTERS, PodReading, read_pinned, read_pod
from relay.kubernetes.skip_reason import SkipReason
from relay.kubernetes.snapshot import read_snapshot
from relay.kubernetes.workload import Workload, workload_of
from workers.intake.deduplication import Decision, Report, decide_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.intake.deduplication import Accepted

A, B, C = digest_of("a"), digest_of("b"), digest_of("c")
WEB = "ghcr.io/acme/web"

PODS = sorted(
    path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith(("review-", "eks-node", "recorded-"))
)


def reported(reading: PodReading) -> dict[str | None, str]:
    return {event.image.name: event.image.url for event in reading.events}


def skipped(reading: PodReading) -> dict[str, int]:
    return {str(reason): count for reason, count in reading.skipped.items()}


@pytest.mark.parametrize("name", PODS)
def test_the_objects_are_valid_by_kubernetes_schemas(name: str) -> None:
    kubernetes_validate.validate(load(name), "1.34", strict=True)


# Digests and repositories, as each distribution has them


@pytest.mark.parametrize(
    ("name", "expected", "not_reported"),
    [
        (
            "kind-deployment",
            {"shop/web/nginx": f"docker.io/library/nginx@{digest_of('nginx-1.27')}"},
            {"digest_unavailable": 1},
        ),
        (
            "eks-deployment",
            {
                "payments/payments-api/api": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/payments/api@"
                + digest_of("payments-2.14.0")
            },
            {},
        ),
        ("gke-statefulset", {"shop/cache/redis": f"docker.io/library/redis@{digest_of('redis-7.4')}"}, {}),
        (
            "openshift-deploymentconfig",
            {
                "legacy/billing/billing": "image-registry.openshift-image-registry.svc:5000/legacy/billing@"
                + digest_of("billing-12")
            },
            {},
        ),
        (
            "dockershim-daemonset",
            {"ops/legacy-node-agent/agent": f"registry.example.com:5000/ops/agent@{digest_of('agent-3.1')}"},
            {"digest_unavailable": 1},
        ),
        ("cronjob-run", {"shop/nightly-report/report": f"ghcr.io/acme/report@{digest_of('report-2026.3')}"}, {}),
        ("mirror-pod", {"edge/edge-proxy/proxy": f"registry.example.com/edge/proxy@{digest_of('proxy-1.9')}"}, {}),
        (
            "many-containers",
            {
                "shop/orders/migrate": f"ghcr.io/acme/orders-migrate@{digest_of('migrate-8.2')}",
                "shop/orders/mesh": f"ghcr.io/acme/mesh@{digest_of('mesh-1.4')}",
                "shop/orders/orders": f"ghcr.io/acme/orders@{digest_of('orders-8.2')}",
                "shop/orders/exporter": f"quay.io/acme/exporter@{digest_of('exporter-0.3')}",
                "shop/orders/debugger-7kq9z": f"docker.io/library/busybox@{digest_of('busybox-1.37')}",
            },
            {},
        ),
    ],
)
def test_a_pod_reports_each_container_by_its_digest(
    name: str, expected: dict[str, str], not_reported: dict[str, int]
) -> None:
    reading = read_pod(load(name), NAMING)

    assert reported(reading) == expected
    assert skipped(reading) == not_reported


@pytest.mark.parametrize(
    "image_id",
    [f"{WEB}@{A}", f"docker-pullable://{WEB}@{A}", f"mirror.internal:5000/proxy/acme/web@{A}", f"@{A}"],
)
def test_an_image_id_with_a_manifests_digest_is_reported_under_the_specifications_repository(image_id: str) -> None:
    assert reported(read_pod(pod_of(image_id), NAMING)) == {"shop/web/app": f"{WEB}@{A}"}


@pytest.mark.parametrize(
    ("image", "image_id"),
    [
        ("web:1.2", f"docker.io/library/import-2026-10-05@{A}"),
        ("ghcr.io/acme/web:1", f"docker-pullable://import-2026-10-05@{A}"),
        ("ghcr.io/acme/web:1", f"registry.example.com/import-2026-10-05:latest@{A}"),
        ("ghcr.io/acme/web:1", f"localhost/web@{A}"),
        ("web:1.2", f"localhost/acme/web@{A}"),
        ("kind.local/web:1", f"docker.io/library/web@{A}"),
        (
            "ko.local/web-5d41402abc4b2a76b9719d911017c592:latest",
            f"ko.local/web-5d41402abc4b2a76b9719d911017c592@{A}",
        ),
        ("dev.local/web:1", f"dev.local/web@{A}"),
        ("ghcr.io/acme/web:1", f"{B}@{A}"),
        ("ghcr.io/acme/web:1", f"<none>@{A}"),
        ("ghcr.io/acme/web:1", f"docker-pullable://<none>:<none>@{A}"),
    ],
)
def test_an_image_that_was_loaded_into_the_node_has_no_digest_of_a_registry(image: str, image_id: str) -> None:
    reading = read_pod(pod_of(image_id, image=image), NAMING)

    assert not reading.events
    assert skipped(reading) == {"digest_unavailable": 1}


@pytest.mark.parametrize("image", ["localhost/web", "kind.local/web", "ko.local/web", "dev.local/web"])
def test_an_image_that_no_registry_has_is_not_reported_as_pinned_either(image: str) -> None:
    assert skipped(read_pinned(pod_of("", image=f"{image}@{A}"), NAMING)) == {"digest_unavailable": 1}


@pytest.mark.parametrize(
    "image_id",
    [
        f"mirror.internal/proxy/acme/web@{A}",
        f"localhost:5000/acme/web@{A}",
        f"docker.io/acme/import-service@{A}",
        f"docker.io/import-2026-10-05/web@{A}",
        f"registry.local/acme/web@{A}",
        f"localhost.example.com/web@{A}",
    ],
)
def test_an_image_of_a_mirror_or_a_registry_on_the_node_is_reported(image_id: str) -> None:
    assert reported(read_pod(pod_of(image_id), NAMING)) == {"shop/web/app": f"{WEB}@{A}"}


@pytest.mark.parametrize("image_id", [A, f"docker://{A}", A.removeprefix("sha256:"), "", None, 7, {}])
def test_an_image_id_without_one_is_counted(image_id: Any) -> None:
    reading = read_pod(pod_of(image_id), NAMING)

    assert not reading.events
    assert skipped(reading) == {"digest_unavailable": 1}


def test_what_runs_wins_over_what_was_pinned() -> None:
    platform_manifest = pod_of(f"{WEB}@{B}", image=f"{WEB}:1@{A}")
    assert reported(read_pod(platform_manifest, NAMING)) == {"shop/web/app": f"{WEB}@{B}"}


@pytest.mark.parametrize(
    ("image", "image_id"),
    [
        ("UPPER/case", f"x@{A}"),
        ("", f"x@{A}"),
        ("a b", f"x@{A}"),
        (A, f"x@{A}"),
        (A.removeprefix("sha256:"), f"x@{A}"),
        (WEB, "x@sha256:abc"),
        (WEB, "x@sha384:" + "a" * 96),
        (None, f"x@{A}"),
    ],
)
def test_an_image_that_is_no_reference_is_counted(image: Any, image_id: str) -> None:
    reading = read_pod(pod_of(image_id, image=image), NAMING)

    assert not reading.events
    assert skipped(reading) == {"invalid_image": 1}


def test_names_that_are_too_long_are_shortened() -> None:
    called = naming(name_template="{container}" * 100, environment_template="{namespace}" * 100)
    (event,) = read_pod(pod_of(f"{WEB}@{A}"), called).events
    assert event.image.name is not None
    assert event.environment.name is not None
    assert (len(event.image.name), len(event.environment.name)) == (255, 255)


@pytest.mark.parametrize("value", ["a\nb", "a\x00b", "\ud800"])
def test_a_label_that_no_name_may_have_is_counted(value: str) -> None:
    pod = pod_of(f"{WEB}@{A}")
    pod["metadata"]["labels"]["team"] = value
    assert skipped(read_pod(pod, naming(name_template="{pod_labels[team]}"))) == {"invalid_name": 1}


@pytest.mark.parametrize("label", [None, 7, {}, "", "x" * 100_000])
def test_a_label_that_is_none_is_missing(label: Any) -> None:
    pod = pod_of(f"{WEB}@{A}")
    pod["metadata"]["labels"]["team"] = label
    assert skipped(read_pod(pod, naming(name_template="{pod_labels[team]}"))) == {"label_missing": 1}


def test_kinds_that_are_ignored_report_nothing() -> None:
    assert skipped(read_pod(pod_of(f"{WEB}@{A}"), naming(ignore_kinds=["replicaset"]))) == {"kind_ignored": 1}
    assert skipped(read_pod(pod_of(f"{WEB}@{A}"), naming(ignore_kinds=["Deployment"]))) == {"kind_ignored": 1}
    assert read_pod(pod_of(f"{WEB}@{A}"), naming(ignore_kinds=["Job", "Pod"])).events


def test_volumes_that_are_images_are_counted_once() -> None:
    volumes = [{"name": "model", "image": {"reference": f"ghcr.io/acme/model@{B}"}}, {"name": "tmp", "emptyDir": {}}]
    pod = pod_of(f"{WEB}@{A}", spec={"volumes": volumes})
    assert skipped(read_pod(pod, NAMING)) == {"image_volume": 1}
    assert skipped(read_pod(pod, NAMING, before=pod)) == {"unchanged": 1}
    assert skipped(read_pinned(pod, NAMING)) == {"image_volume": 1, "not_pinned": 1}


def test_the_source_is_the_cluster() -> None:
    (event,) = read_pod(pod_of(f"{WEB}@{A}"), naming(cluster="eu-1")).events
    assert (event.source, event.environment.name, event.id) == ("eu-1", "eu-1/shop", None)


def test_labels_of_the_namespace_name_the_environment() -> None:
    called = naming(environment_template="{namespace_labels[stage]}")
    (event,) = read_pod(pod_of(f"{WEB}@{A}"), called, namespace_labels={"stage": "prod"}).events

    assert event.environment.name == "prod"
    assert skipped(read_pod(pod_of(f"{WEB}@{A}"), called)) == {"label_missing": 1}


# Which pods, which containers


def test_nothing_is_reported_of_ignored_namespaces() -> None:
    reading = read_pod(load("mirror-pod"), naming(ignore_namespaces=("edge",)))
    assert skipped(reading) == {"namespace_ignored": 1}
    assert not reading.events


def test_nothing_is_reported_of_a_pod_that_is_being_deleted() -> None:
    pod = pod_of(f"{WEB}@{A}")
    pod["metadata"]["deletionTimestamp"] = "2026-03-02T11:00:00Z"
    assert skipped(read_pod(pod, NAMING)) == {"terminating": 1}
    assert not read_pod(pod, NAMING).events


@pytest.mark.parametrize("key", ["name", "namespace"])
def test_what_has_no_name_or_namespace_is_no_pod(key: str) -> None:
    pod = pod_of(f"{WEB}@{A}")
    del pod["metadata"][key], pod["metadata"]["ownerReferences"]
    assert skipped(read_pod(pod, NAMING)) == {"not_a_pod": 1}


@pytest.mark.parametrize("key", ["name", "namespace"])
def test_what_has_a_longer_name_than_there_are_is_no_pod(key: str) -> None:
    pod = pod_of(f"{WEB}@{A}")
    del pod["metadata"]["ownerReferences"]
    pod["metadata"][key] = "x" * MAX_NAME_CHARACTERS
    assert "not_a_pod" not in skipped(read_pod(pod, NAMING))
    pod["metadata"][key] += "x"
    assert skipped(read_pod(pod, NAMING)) == {"not_a_pod": 1}


@pytest.mark.parametrize(
    ("status", "not_reported"),
    [
        ({"state": {"running": {"startedAt": "2026-03-02T10:00:05Z"}}}, {}),
        ({"state": {"terminated": {"exitCode": 0}}}, {}),
        ({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 1}}}, {}),
        ({"state": {"waiting": {"reason": "ContainerCreating"}}}, {"not_running": 1}),
        ({"state": {"running": None, "terminated": None, "waiting": {}}}, {"not_running": 1}),
        ({"state": {}}, {"not_running": 1}),
        ({}, {"not_running": 1}),
    ],
)
def test_only_what_has_started_is_reported(status: dict[str, Any], not_reported: dict[str, int]) -> None:
    pod = pod_of("")
    pod["status"]["containerStatuses"] = [{"name": "app", "imageID": f"x@{A}"} | status]
    reading = read_pod(pod, NAMING)

    assert skipped(reading) == not_reported
    assert bool(reading.events) is (not not_reported)


def test_a_pod_without_a_status_has_not_run_anything() -> None:
    pod = pod_of("")
    del pod["status"]
    assert skipped(read_pod(pod, NAMING)) == {"not_running": 1}


def test_a_status_belongs_to_its_containers_kind() -> None:
    pod = pod_of(f"{WEB}@{A}")
    pod["status"]["initContainerStatuses"] = pod["status"].pop("containerStatuses")
    assert skipped(read_pod(pod, NAMING)) == {"not_running": 1}


@pytest.mark.parametrize("read", [read_pod, read_pinned])
def test_a_pod_has_so_many_containers_and_no_more(read: Callable[..., PodReading]) -> None:
    pod = pod_of("", image=f"{WEB}@{A}", status={"containerStatuses": []})
    pod["spec"]["initContainers"] = [{"name": f"c{n}", "image": f"{WEB}@{A}"} for n in range(MAX_CONTAINERS - 1)]
    assert skipped(read(pod, NAMING)) == ({"not_running": MAX_CONTAINERS} if read is read_pod else {})

    pod["spec"]["ephemeralContainers"] = [{"name": "more", "image": f"{WEB}@{A}"}]
    assert skipped(read(pod, NAMING)) == {"too_many_containers": 1}
    assert not read(pod, NAMING).events


def test_what_was_before_is_not_read_either_if_it_has_more() -> None:
    before = pod_of(f"{WEB}@{A}")
    before["spec"]["containers"] *= MAX_CONTAINERS
    assert skipped(read_pod(pod_of(f"{WEB}@{A}"), NAMING, before=before)) == {"unchanged": 1}

    before["spec"]["containers"].append({})
    assert read_pod(pod_of(f"{WEB}@{A}"), NAMING, before=before).events


# What is pinned


def test_a_specification_reports_what_it_pins() -> None:
    pod = load("openshift-deploymentconfig")
    del pod["status"]
    (event,) = read_pinned(pod, NAMING).events

    assert event.image.digest == digest_of("billing-12")
    assert event.time is None


def test_a_specification_with_a_tag_reports_nothing() -> None:
    assert skipped(read_pinned(load("eks-deployment"), NAMING)) == {"not_pinned": 1}


def test_a_malformed_digest_is_no_pin() -> None:
    assert skipped(read_pinned(pod_of("", image=f"{WEB}@sha256:12"), NAMING)) == {"invalid_image": 1}


def test_only_what_was_not_pinned_before_is_reported() -> None:
    before = load("many-containers")
    pod = copy.deepcopy(before)
    pod["spec"]["containers"][0]["image"] = f"ghcr.io/acme/orders@{B}"
    reading = read_pinned(pod, NAMING, before=before)

    assert reported(reading) == {"shop/orders/orders": f"ghcr.io/acme/orders@{B}"}
    assert skipped(reading) == {"unchanged": 4}


# What changed


@pytest.mark.parametrize(
    ("then", "now", "reason"),
    [
        (f"{WEB}@{A}", f"{WEB}@{A}", SkipReason.UNCHANGED),
        (f"docker-pullable://{WEB}@{A}", f"mirror/web@{A}", SkipReason.UNCHANGED),
        (f"{WEB}@{A}", A, SkipReason.DIGEST_UNAVAILABLE),
        (f"{WEB}@{A}", f"{WEB}@{B}", None),
        (A, f"{WEB}@{A}", None),
        ("", f"{WEB}@{A}", None),
    ],
)
def test_a_digest_is_reported_when_it_differs_from_before(then: str, now: str, reason: SkipReason | None) -> None:
    reading = read_pod(pod_of(now), NAMING, before=pod_of(then))

    assert bool(reading.events) is (reason is None)
    assert skipped(reading) == ({reason: 1} if reason else {})


def test_what_was_pulled_before_but_had_not_started_is_news_once_it_starts() -> None:
    before = pod_of(f"{WEB}@{A}")
    before["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "PodInitializing"}}
    assert read_pod(pod_of(f"{WEB}@{A}"), NAMING, before=before).events


def test_another_pod_of_the_same_name_is_not_what_was_before() -> None:
    pod, before = pod_of(f"{WEB}@{A}"), pod_of(f"{WEB}@{A}")
    before["metadata"]["uid"] = "another"
    assert read_pod(pod, NAMING, before=before).events


# Since when

CREATED, STARTED = datetime(2026, 3, 2, 10, 0, 0, tzinfo=UTC), datetime(2026, 3, 2, 10, 0, 5, tzinfo=UTC)


def time_of(reading: PodReading) -> datetime | None:
    (event,) = reading.events
    return event.time


def test_what_runs_counts_from_its_pods_creation() -> None:
    assert time_of(read_pod(pod_of(f"{WEB}@{A}"), NAMING)) == CREATED


def test_without_a_creation_it_counts_from_its_start() -> None:
    assert time_of(read_pod(pod_of(f"{WEB}@{A}", created=""), NAMING)) == STARTED


def test_a_digest_that_replaced_another_counts_from_its_start() -> None:
    assert time_of(read_pod(pod_of(f"{WEB}@{B}"), NAMING, before=pod_of(f"{WEB}@{A}"))) == STARTED


@pytest.mark.parametrize("started", ["", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "soon"])
def test_no_start_is_earlier_than_the_creation(started: str) -> None:
    reading = read_pod(pod_of(f"{WEB}@{B}", started=started), NAMING, before=pod_of(f"{WEB}@{A}"))
    assert time_of(reading) == CREATED


def test_an_ephemeral_container_counts_from_its_start() -> None:
    times = {event.image.name: event.time for event in read_pod(load("many-containers"), NAMING).events}

    assert times.pop("shop/orders/debugger-7kq9z") == datetime(2026, 3, 4, 16, 45, 30, tzinfo=UTC)
    assert set(times.values()) == {datetime(2026, 3, 2, 14, 0, 0, tzinfo=UTC)}


# What intake makes of it


class Intake:
    """One instance, and the decisions on what is reported of it; time passes by an hour with each report."""

    def __init__(self) -> None:
        self.state: Accepted | None = None
        self.now = datetime(2026, 3, 3, tzinfo=UTC)

    @property
    def digest(self) -> str:
        assert self.state
        return self.state.digest

    def take(self, reading: PodReading) -> list[Decision]:
        return [self._judge(event) for event in reading.events]

    def _judge(self, event: DeploymentEvent) -> Decision:
        self.now += timedelta(hours=1)
        report = Report(event.image.digest, str(self.now), _milliseconds(event.time), _milliseconds(self.now) or 0)
        decision, self.state = decide_report(self.state, None, report, reassert_after_ms=1e12)
        return decision


def _milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


OLD = pod_of(f"{WEB}@{A}", name="web-5d-old", created="2026-03-02T10:00:00Z")
NEW = pod_of(f"{WEB}@{B}", name="web-5d-new", created="2026-03-02T11:00:00Z", started="2026-03-02T11:00:05Z")


@pytest.fixture
def intake() -> Intake:
    return Intake()


def test_an_old_pod_cannot_flap_the_state_back(intake: Intake) -> None:
    old_again = pod_of(A, name="web-5d-old")  # its runtime restarted, and gave a bare id for a while

    assert intake.take(read_pod(OLD, NAMING)) == [Decision.NEW]
    assert intake.take(read_pod(NEW, NAMING)) == [Decision.CHANGED]
    assert intake.take(read_pod(old_again, NAMING, before=OLD)) == []
    assert intake.take(read_pod(OLD, NAMING, before=old_again)) == [Decision.STALE]
    assert intake.digest == B


def test_an_old_pod_that_restarts_later_cannot_either(intake: Intake) -> None:
    restarted = pod_of(f"{WEB}@{A}", name="web-5d-old", started="2026-03-02T12:00:00Z")
    intake.take(read_pod(OLD, NAMING))
    intake.take(read_pod(NEW, NAMING))

    assert intake.take(read_pod(restarted, NAMING)) == [Decision.STALE]
    assert intake.take(read_pod(NEW, NAMING)) == [Decision.DUPLICATE]


def test_a_rollback_by_a_new_pod_is_news(intake: Intake) -> None:
    back = pod_of(f"{WEB}@{A}", name="web-5d-back", created="2026-03-02T12:00:00Z")
    for pod in (OLD, NEW):
        intake.take(read_pod(pod, NAMING))

    assert intake.take(read_pod(back, NAMING)) == [Decision.CHANGED]
    assert intake.digest == A


def test_a_tag_that_moved_is_news_whether_or_not_it_is_known_what_ran_before(intake: Intake) -> None:
    moved = pod_of(f"{WEB}@{C}", name="web-5d-old", started="2026-03-02T12:00:00Z")
    intake.take(read_pod(OLD, NAMING))
    assert intake.take(read_pod(moved, NAMING)) == [Decision.CHANGED]

    intake.take(read_pod(NEW, NAMING))
    assert intake.take(read_pod(moved, NAMING, before=OLD)) == [Decision.CHANGED]  # in place, after the newer pod


def test_a_pin_that_never_ran_is_undone_by_what_runs(intake: Intake) -> None:
    denied = pod_of("", image=f"{WEB}@{B}", name="web-5d-denied", created="2026-03-02T11:00:00Z")
    intake.take(read_pod(OLD, NAMING))

    assert intake.take(read_pinned(denied, NAMING)) == [Decision.CHANGED]
    assert intake.take(read_pod(OLD, NAMING)) == [Decision.CHANGED]
    assert intake.digest == A


def test_a_pin_that_runs_is_reported_once(intake: Intake) -> None:
    asked = pod_of("", image=f"{WEB}@{B}", name="web-5d-new", created="2026-03-02T11:00:00Z")
    intake.take(read_pod(OLD, NAMING))

    assert intake.take(read_pinned(asked, NAMING)) == [Decision.CHANGED]
    assert intake.take(read_pod(NEW, NAMING, before=asked)) == [Decision.DUPLICATE]
    assert intake.take(read_pod(OLD, NAMING)) == [Decision.STALE]


# All pods of a cluster together

AT = datetime(2026, 3, 2, 13, 0, 0, 999_999, tzinfo=UTC)


def test_of_all_pods_the_newest_speaks_once_for_each_instance() -> None:
    reading = read_snapshot([NEW, OLD, load("eks-deployment")], NAMING, at=AT)

    assert reported(reading)["shop/web/app"] == f"{WEB}@{B}"
    assert len(reading.events) == 2
    assert {event.time for event in reading.events} == {AT.replace(microsecond=0)}
    assert skipped(reading) == {"replica": 1}


def test_pods_that_are_over_speak_only_where_no_other_does() -> None:
    evicted = copy.deepcopy(NEW)
    evicted["status"]["phase"] = "Failed"

    assert reported(read_snapshot([evicted, OLD], NAMING, at=AT)) == {"shop/web/app": f"{WEB}@{A}"}
    assert reported(read_snapshot([evicted], NAMING, at=AT)) == {"shop/web/app": f"{WEB}@{B}"}


def test_a_listing_undoes_a_rollout_whose_pods_are_gone(intake: Intake) -> None:
    for pod in (OLD, NEW):
        intake.take(read_pod(pod, NAMING))
    assert intake.take(read_pod(OLD, NAMING)) == [Decision.STALE]  # as a pod alone it cannot

    assert intake.take(read_snapshot([OLD], NAMING, at=AT)) == [Decision.CHANGED]
    assert intake.digest == A


def test_an_image_that_is_not_there_is_not_joined_with_the_digest_of_the_one_before() -> None:
    """Its image was changed in place: the status is of the old one until the new one is pulled."""
    pod = copy.deepcopy(OLD)
    pod["spec"]["containers"][0]["image"] = "ghcr.io/acme/other:2"
    [status] = pod["status"]["containerStatuses"]
    status |= {"state": {"waiting": {"reason": "ImagePullBackOff"}}, "lastState": {"terminated": {}}}

    assert skipped(read_snapshot([pod], NAMING, at=AT)) == {"not_running": 1}
    assert skipped(read_pod(pod, NAMING, before=OLD)) == {"unchanged": 1}
    assert len(read_pod(pod_of(f"{WEB}@{B}", name="web-5d-old"), NAMING, before=pod).events) == 1


def test_a_pod_that_starts_after_the_listing_is_news(intake: Intake) -> None:
    starting = copy.deepcopy(NEW)
    starting["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}

    intake.take(read_snapshot([OLD, starting], NAMING, at=AT))
    assert intake.take(read_pod(NEW, NAMING, before=starting)) == [Decision.CHANGED]


def starting(pod: dict[str, Any], **metadata: str) -> dict[str, Any]:
    """Return the pod as one that has yet to start."""
    pod = copy.deepcopy(pod)
    pod["metadata"] |= metadata
    pod["status"]["containerStatuses"][0] |= {"state": {"waiting": {"reason": "ContainerCreating"}}, "imageID": ""}
    return pod


def test_a_listing_undoes_a_pin_that_never_starts(intake: Intake) -> None:
    created = "2026-03-02T12:30:00Z"
    pinned = starting(pod_of("", image=f"{WEB}@{B}", name="web-6e-new", created=created))
    intake.take(read_snapshot([OLD], NAMING, at=datetime(2026, 3, 2, 12, tzinfo=UTC)))
    assert intake.take(read_pinned(pinned, NAMING)) == [Decision.CHANGED]

    assert intake.take(read_snapshot([OLD, pinned], NAMING, at=AT)) == [Decision.CHANGED]
    assert intake.digest == A
    ran = pod_of(f"{WEB}@{B}", name="web-6e-new", created=created)
    assert intake.take(read_pod(ran, NAMING, before=pinned)) == [Decision.CHANGED]


def test_a_pod_older_than_who_speaks_is_not_waited_for() -> None:
    older = starting(pod_of("", name="web-4c-pending", created="2026-03-02T09:00:00Z"))
    assert time_of(read_snapshot([OLD, older], NAMING, at=AT)) == AT.replace(microsecond=0)


def test_a_sibling_without_room_does_not_keep_a_listing_from_undoing_a_rollout(intake: Intake) -> None:
    sibling = starting(OLD, creationTimestamp="2026-03-02T10:30:00Z", name="web-5d-pending", uid="pending")
    for pod in (OLD, NEW):
        intake.take(read_pod(pod, NAMING))
    assert intake.take(read_snapshot([OLD, sibling], NAMING, at=AT)) == [Decision.STALE]  # its tag may have moved

    sibling["spec"]["containers"][0]["image"] = f"{WEB}@{A}"
    assert intake.take(read_snapshot([OLD, sibling], NAMING, at=AT)) == [Decision.CHANGED]
    assert intake.digest == A


def test_a_pod_that_was_evicted_before_it_started_is_not_waited_for() -> None:
    evicted = copy.deepcopy(NEW)
    evicted["status"] = {"phase": "Failed", "reason": "Evicted"}
    assert time_of(read_snapshot([OLD, evicted], NAMING, at=AT)) == AT.replace(microsecond=0)


def test_a_listing_knows_nodes_and_namespaces() -> None:
    node = load("eks-node")
    (event,) = read_snapshot(
        [load("eks-deployment")],
        naming(environment_template="{namespace_labels[stage]}"),
        at=AT,
        node_platforms={node["metadata"]["name"]: Platform(os="linux", architecture="riscv64")},
        namespace_labels={"payments": {"stage": "prod"}},
    ).events
    assert (event.environment.name, str(event.platform)) == ("prod", "linux/riscv64")


# Whose pod


def owned(kind: str, name: str, **metadata: Any) -> dict[str, Any]:
    owners = [{"kind": "Other", "name": "other"}, {"kind": kind, "name": name, "controller": True}]
    return {"metadata": {"name": "p", "ownerReferences": owners} | metadata}


@pytest.mark.parametrize(
    ("pod", "kind", "name"),
    [
        (owned("ReplicaSet", "web-6d4c", labels={"pod-template-hash": "6d4c"}), "Deployment", "web"),
        (owned("ReplicaSet", "a-6d4c-6d4c", labels={"pod-template-hash": "6d4c"}), "Deployment", "a-6d4c"),
        (owned("ReplicaSet", "web-6d4c", labels={"rollouts-pod-template-hash": "6d4c"}), "Rollout", "web"),
        (owned("ReplicaSet", "web-6d4c"), "ReplicaSet", "web-6d4c"),
        (owned("ReplicaSet", "web-6d4c", labels={"pod-template-hash": "other"}), "ReplicaSet", "web-6d4c"),
        (owned("ReplicaSet", "web", labels={"pod-template-hash": ""}), "ReplicaSet", "web"),
        (owned("StatefulSet", "db"), "StatefulSet", "db"),
        (owned("DaemonSet", "agent"), "DaemonSet", "agent"),
        (owned("Job", "nightly-29541000"), "CronJob", "nightly"),
        (owned("Job", "nightly-1614733200"), "CronJob", "nightly"),
        (owned("Job", "migrate-2"), "Job", "migrate-2"),
        (owned("Job", "migrate"), "Job", "migrate"),
        (owned("ReplicationController", "old-3"), "ReplicationController", "old-3"),
        (owned("Workflow", "build-x7k"), "Workflow", "build-x7k"),
        ({"metadata": {"name": "alone"}}, "Pod", "alone"),
        ({"metadata": {"generateName": "alone-"}}, "Pod", "alone"),
        ({"metadata": {"name": "p", "ownerReferences": [{"kind": "ReplicaSet", "name": "x"}]}}, "Pod", "p"),
        ({"metadata": {"name": "p", "ownerReferences": [{"controller": True}]}}, "Pod", "p"),
        ({}, "Pod", ""),
        # Runs, by what they are made from
        (owned("Job", "backup-x7k2p"), "Job", "backup"),
        (owned("Job", "backup-tests"), "Job", "backup-tests"),
        (owned("Job", "backup-b7f9c0d2-1c2d-4e5f-8a9b-0c1d2e3f4a5b"), "Job", "backup"),
        (owned("TaskRun", "build-b7f9c0d21c2d4e5f8a9b0c1d2e3f4a5b"), "TaskRun", "build"),
        (owned("Job", "backup-b7f9c0d2"), "Job", "backup-b7f9c0d2"),
        (
            owned("StatefulSet", "db-b7f9c0d21c2d4e5f8a9b0c1d2e3f4a5b"),
            "StatefulSet",
            "db-b7f9c0d21c2d4e5f8a9b0c1d2e3f4a5b",
        ),
        ({"metadata": {"name": "extract-b7f9c0d2-1c2d-4e5f-8a9b-0c1d2e3f4a5b"}}, "Pod", "extract"),
        (owned("Workflow", "build-x7k2p"), "Workflow", "build"),
        (owned("Workflow", "nightly-1614733200"), "CronWorkflow", "nightly"),
        (
            owned("Workflow", "a-1", labels={"workflows.argoproj.io/cron-workflow": "nightly"}),
            "CronWorkflow",
            "nightly",
        ),
        (owned("Workflow", "a-1", labels={"workflows.argoproj.io/workflow-template": "t"}), "WorkflowTemplate", "t"),
        (
            owned("Workflow", "a-1", labels={"workflows.argoproj.io/cluster-workflow-template": "c"}),
            "ClusterWorkflowTemplate",
            "c",
        ),
        (owned("Workflow", "a-1", labels={"workflows.argoproj.io/cron-workflow": ""}), "Workflow", "a-1"),
        (owned("Workflow", "a-1", labels={"workflows.argoproj.io/cron-workflow": "x" * 254}), "Workflow", "a-1"),
        (owned("Workflow", "a-1", labels={"workflows.argoproj.io/cron-workflow": 7}), "Workflow", "a-1"),
        (
            owned("TaskRun", "r-x7k2p-b", labels={"tekton.dev/pipeline": "ci", "tekton.dev/pipelineTask": "build"}),
            "PipelineTask",
            "ci-build",
        ),
        (
            owned(
                "TaskRun",
                "run-x7k2p-build",
                labels={
                    "tekton.dev/pipeline": "run-x7k2p",
                    "tekton.dev/pipelineRun": "run-x7k2p",
                    "tekton.dev/pipelineTask": "build",
                },
            ),
            "PipelineTask",
            "run-build",
        ),
        (owned("TaskRun", "build-x7k2p", labels={"tekton.dev/task": "buildah"}), "Task", "buildah"),
        (owned("TaskRun", "build-x7k2p", labels={"tekton.dev/pipelineTask": "build"}), "PipelineTask", "build"),
        (owned("TaskRun", "build-x7k2p"), "TaskRun", "build"),
        (
            owned(
                "ReplicaSet",
                "web-00007-deployment-6d4c",
                labels={"pod-template-hash": "6d4c", "serving.knative.dev/service": "web"},
            ),
            "Service",
            "web",
        ),
        (owned("StatefulSet", "db", labels={"serving.knative.dev/service": "web"}), "StatefulSet", "db"),
        (
            owned("EphemeralRunner", "r-x7k2p-runner-9zlqs", labels={"actions.github.com/scale-set-name": "arc"}),
            "AutoscalingRunnerSet",
            "arc",
        ),
        ({"metadata": {"name": "runner-x7k2p", "generateName": "runner-"}}, "Pod", "runner"),
        ({"metadata": {"name": "other", "generateName": "runner-"}}, "Pod", "other"),
        ({"metadata": {"name": "-x7k2p", "generateName": "-"}}, "Pod", "-x7k2p"),
        (
            {"metadata": {"name": "runner-t1-project-42-concurrent-0-9zlqs2x7"}},
            "Pod",
            "runner-t1-project-42-concurrent-0",
        ),
        ({"metadata": {"name": "maven-x7k2p", "labels": {"jenkins/label": "maven"}}}, "Pod", "maven"),
    ],
)
def test_a_pod_belongs_to_the_workload_that_people_know(pod: dict[str, Any], kind: str, name: str) -> None:
    assert workload_of(pod) == Workload(kind=kind, name=name)


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("mirror-pod", Workload(kind="Pod", name="edge-proxy")),
        ("openshift-deploymentconfig", Workload(kind="DeploymentConfig", name="billing")),
    ],
)
def test_some_are_told_by_annotations(name: str, workload: Workload) -> None:
    assert workload_of(load(name)) == workload


# On which platform


def required(*terms: list[dict[str, Any]]) -> dict[str, Any]:
    selector = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selector}}}


def arch(*values: str, operator: str = "In") -> dict[str, Any]:
    return {"key": "kubernetes.io/arch", "operator": operator, "values": list(values)}


@pytest.mark.parametrize(
    ("spec", "platform"),
    [
        ({}, "linux/amd64"),
        ({"nodeSelector": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}}, "linux/arm64"),
        ({"nodeSelector": {"beta.kubernetes.io/arch": "aarch64"}}, "linux/arm64"),
        ({"os": {"name": "windows"}}, "windows/amd64"),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}, "os": {"name": "linux"}}, "windows/amd64"),
        (required([arch("arm64")]), "linux/arm64"),
        (required([arch("arm64"), {"key": "zone", "operator": "In", "values": ["a"]}]), "linux/arm64"),
        (required([arch("arm64")], [arch("arm64")]), "linux/arm64"),
        (required([arch("arm64")], [arch("s390x")]), "linux/amd64"),
        (required([arch("arm64")], []), "linux/amd64"),
        (required([arch("arm64", "s390x")]), "linux/amd64"),
        (required([arch("arm64", operator="NotIn")]), "linux/amd64"),
        ({"nodeSelector": {"kubernetes.io/arch": "no such!"}}, "linux/amd64"),
        ({"nodeSelector": "linux", "os": 5, "affinity": [1]}, "linux/amd64"),
    ],
)
def test_a_specification_that_leaves_no_choice_names_the_platform(spec: dict[str, Any], platform: str) -> None:
    (event,) = read_pod(pod_of(f"{WEB}@{A}", spec=spec), NAMING).events
    assert str(event.completed(Defaults()).platform) == platform


def test_a_pod_for_linux_keeps_its_environments_platform() -> None:
    (event,) = read_pod(pod_of(f"{WEB}@{A}", spec={"nodeSelector": {"kubernetes.io/os": "linux"}}), NAMING).events
    edge = Defaults(platforms=(("shop", Platform(os="linux", architecture="arm64")),))

    assert str(event.completed(edge).platform) == "linux/arm64"


def test_the_node_knows_better() -> None:
    node = platform_of_node(load("eks-node"))
    pod = pod_of(f"{WEB}@{A}", spec={"nodeSelector": {"kubernetes.io/arch": "amd64"}})
    (event,) = read_pod(pod, NAMING, node_platform=node).events

    assert str(event.platform) == "linux/arm64"


@pytest.mark.parametrize("info", [None, {}, {"operatingSystem": "???"}, {"architecture": 7}, []])
def test_a_node_that_does_not_say_has_no_platform(info: Any) -> None:
    assert platform_of_node({"status": {"nodeInfo": info}}) is None


# Nonsense

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([f"{WEB}@{A}", A])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


def paths(given: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All paths into an object."""
    inner = given.items() if isinstance(given, dict) else enumerate(given) if isinstance(given, list) else ()
    return [so_far, *(path for key, item in inner for path in paths(item, (*so_far, key)))]


def replaced(given: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    changed = copy.copy(given)
    changed[path[0]] = replaced(given[path[0]], path[1:], by)
    return changed


MANY = load("many-containers")
PATHS = paths(MANY)


@given(path=st.sampled_from(PATHS), by=JSON, then_path=st.sampled_from(PATHS), then_by=JSON)
def test_any_part_may_be_anything(path: tuple[Any, ...], by: Any, then_path: tuple[Any, ...], then_by: Any) -> None:
    pod, before = replaced(MANY, path, by), replaced(MANY, then_path, then_by)
    for read in (read_pod, read_pinned):
        reading = read(pod, NAMING, before=before)
        assert all(DeploymentEvent.parse(event.body()).image == event.image for event in reading.events)
    assert isinstance(read_snapshot([pod, before], NAMING, at=AT), PodReading)
    assert isinstance(platform_of_node(pod), Platform | None)


@given(JSON, st.lists(st.text(max_size=3)))
def test_a_shape_has_what_it_has(given: Any, path: list[str]) -> None:
    assert isinstance(json_access.part(given, *path), dict)
    assert isinstance(json_access.text(given, *path), str)
    assert all(isinstance(item, dict) for item in json_access.each(given, *path))
    assert isinstance(json_access.moment(given, *path), datetime | None)


LINUX_AMD64, LINUX_ARM64, WINDOWS_AMD64 = map(parse_platform, ("linux/amd64", "linux/arm64", "windows/amd64"))
MIXED = {"n1": LINUX_AMD64, "n2": LINUX_ARM64, "n3": WINDOWS_AMD64}


@pytest.mark.parametrize(
    ("spec", "nodes", "platform"),
    [
        # The node says it, whatever the specification says.
        ({"nodeName": "n2"}, MIXED, "linux/arm64"),
        ({"nodeName": "n3", "nodeSelector": {"kubernetes.io/arch": "arm64"}}, MIXED, "windows/amd64"),
        # The specification leaves no choice, wherever it will run.
        ({"nodeSelector": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}}, MIXED, "linux/arm64"),
        ({"nodeName": "new", "nodeSelector": {"kubernetes.io/os": "linux"}} | required([arch("arm64")]), MIXED,
         "linux/arm64"),
        # A part that all fitting nodes complete in the same way.
        ({"nodeSelector": {"kubernetes.io/arch": "arm64"}}, MIXED, "linux/arm64"),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}}, MIXED, "windows/amd64"),
        ({"os": {"name": "windows"}}, MIXED, "windows/amd64"),
        # Nothing is guessed.
        ({}, MIXED, None),
        ({}, {"n1": LINUX_ARM64}, None),
        ({"nodeName": "new"}, MIXED, None),
        ({"nodeName": "new"}, {}, None),
        ({"nodeName": ["n1"]}, MIXED, None),
        ({"nodeSelector": {"kubernetes.io/os": "linux"}}, MIXED, None),
        ({"os": {"name": "linux"}}, MIXED, None),
        ({"nodeSelector": {"kubernetes.io/arch": "amd64"}}, MIXED, None),
        ({"nodeSelector": {"kubernetes.io/arch": "s390x"}}, MIXED, None),
        (required([arch("arm64")], [arch("s390x")]), MIXED, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_pod, read_pinned])
def test_no_platform_is_guessed_where_the_nodes_are_known(
    read: Any, spec: dict[str, Any], nodes: dict[str, Platform], platform: str | None
) -> None:
    image = f"{WEB}@{A}"
    reading = read(pod_of(image, image=image, spec=spec), NAMING, nodes=nodes)
    if platform is None:
        assert (reading.events, skipped(reading)) == ((), {"platform_unknown": 1})
    else:
        assert [str(event.platform) for event in reading.events] == [platform]
