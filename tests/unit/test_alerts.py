"""Each alert is raised by what it is for, and by nothing else: promtool's own engine, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"

PROMTOOL = shutil.which("promtool")

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH (Debian: apt install prometheus)")

#: A relay in which all is well: series, and their values minute by minute.
WELL = {
    "relay_up": "1x60",
    "relay_events_added_total": "0+100x60",
    "relay_events_redriven_total": "0x60",
    "relay_events_dropped_total": "0x60",
    'relay_events_delivered_total{environment="production"}': "0+80x60",
    'relay_events_delivered_total{environment="other"}': "0+10x60",
    "relay_events_duplicate_total": "0+10x60",
    "relay_events_stale_total": "0x60",
    "relay_events_superseded_total": "0x60",
    'relay_events_dead_total{reason="refused"}': "0x60",
    'relay_waiting_events{stream="inbox"}': "0x60",
    'relay_waiting_events{stream="dead"}': "0x60",
    'relay_waiting_events{stream="outbox",environment="production"}': "0x60",
    'relay_waiting_events{stream="outbox",environment="other"}': "0x60",
    "relay_backlog_capacity_events": "1000000x60",
    "relay_newest_accepted_timestamp_seconds": "0+60x60",
    "relay_newest_delivered_timestamp_seconds": "0+60x60",
    'relay_delivery_attempts_total{outcome="delivered",code="202"}': "0+90x60",
    'relay_delivery_attempts_total{outcome="retry",code="503"}': "0+1x60",
    'relay_destination_health{destination="default",state="healthy"}': "1x60",
    'relay_destination_health{destination="default",state="unauthorized"}': "0x60",
    'relay_destination_health{destination="default",state="unavailable"}': "0x60",
    'relay_report_failures_total{reason="queue_full"}': "0x60",
    "relay_leases_taken_over_total": "0 0 0 1x57",
    'relay_worker_heartbeat_timestamp_seconds{worker="one"}': "0+60x60",
    "relay_redis_memory_used_ratio": "0.5x60",
    'relay_redis_durability_info{appendonly="yes",appendfsync="always",maxmemory_policy="noeviction"}': "1x60",
    "relay_redis_dataset_reset_total": "0x60",
}

#: A queue that fills: deliveries stand still, and all that comes waits.
_FILLS = {
    'relay_events_delivered_total{environment="production"}': "0x60",
    'relay_events_delivered_total{environment="other"}': "0x60",
    "relay_events_duplicate_total": "0x60",
    'relay_waiting_events{stream="outbox",environment="production"}': "0+100x60",
    "relay_backlog_capacity_events": "10000x60",
}
_FULL = {**_FILLS, "relay_backlog_capacity_events": "6500x60"}

#: Alert → what is different when it is raised, and the other alerts that this raises too.
TROUBLE: dict[str, tuple[dict[str, str], set[str]]] = {
    "RelayBehind": ({'relay_oldest_waiting_timestamp_seconds{stream="inbox"}': "600x60"}, set()),
    "RelayNotDelivering": (
        {
            'relay_events_delivered_total{environment="production"}': "500x60",
            'relay_events_delivered_total{environment="other"}': "500x60",
            'relay_waiting_events{stream="outbox",environment="production"}': "7x60",
            "relay_events_added_total": "1007x60",
            "relay_events_duplicate_total": "0x60",
        },
        set(),
    ),
    "RelayFailureRatioHigh": ({'relay_delivery_attempts_total{outcome="retry",code="503"}': "0+30x60"}, set()),
    "RelayDeadLetters": (
        {
            'relay_events_dead_total{reason="refused"}': "0x50 1x10",
            'relay_waiting_events{stream="dead"}': "0x50 1x10",
            "relay_events_added_total": "0+100x50 5101+100x9",
        },
        set(),
    ),
    "RelayUnauthorized": ({'relay_destination_health{destination="default",state="unauthorized"}': "1x60"}, set()),
    "RelayDestinationUnhealthy": (
        {'relay_destination_health{destination="default",state="unavailable"}': "1x60"},
        set(),
    ),
    "RelayReportsRefused": ({'relay_report_failures_total{reason="queue_full"}': "0x57 1x3"}, set()),
    "RelayUnaccounted": ({"relay_events_added_total": "1+100x60"}, set()),
    "RelayWorkerMissing": ({'relay_worker_heartbeat_timestamp_seconds{worker="one"}': "0+60x50 3000x10"}, set()),
    "RelayLeaseChurn": ({"relay_leases_taken_over_total": "0+2x60"}, set()),
    "RelayRedisUnreachable": ({"relay_up": "1x50 0x10"}, set()),
    "RelayRedisNotDurable": (
        {'relay_redis_durability_info{appendonly="no",appendfsync="always",maxmemory_policy="noeviction"}': "1x60"},
        set(),
    ),
    "RelayRedisMemory": ({"relay_redis_memory_used_ratio": "0.85x60"}, set()),
    "RelayDatasetReset": ({"relay_redis_dataset_reset_total": "0x55 1x5"}, set()),
    "RelayQueueFullSoon": (_FILLS, {"RelayNotDelivering"}),
    "RelayQueueNearCapacity": (_FULL, {"RelayNotDelivering", "RelayQueueFullSoon"}),
}


def raised(tmp_path: Path, series: Mapping[str, str], expected: set[str], *, minutes: int = 60) -> str:
    """Let promtool compare the alerts after an hour of these series with those expected; return its objections."""
    said = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    test: dict[str, Any] = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": with_target(name), "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{minutes}m",
                        "exp_samples": said,
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False, timeout=100
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def with_target(series: str) -> str:
    """Label a series as a scrape does."""
    name, _, labels = series.partition("{")
    target = 'job="relay",instance="one:9780"'
    return f"{name}{{{target}}}" if not labels else f"{name}{{{target},{labels}"


def test_promtool_accepts_the_rules() -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", "--lint-fatal", str(ALERTS)], check=True, timeout=100)


def test_a_healthy_relay_raises_no_alert(tmp_path: Path) -> None:
    assert not raised(tmp_path, WELL, set())
    assert raised(tmp_path, WELL, {"RelayBehind"}), "promtool must object"


@pytest.mark.parametrize("alert", sorted(TROUBLE))
def test_trouble_raises_its_alert(alert: str, tmp_path: Path) -> None:
    different, also = TROUBLE[alert]
    assert not raised(tmp_path, {**WELL, **different}, {alert, *also})


def test_a_stuck_intake_raises_not_delivering(tmp_path: Path) -> None:
    """Nothing is in an outbox then, and workers whose processes hang give signs of life."""
    stands = {
        'relay_events_delivered_total{environment="production"}': "500x60",
        'relay_events_delivered_total{environment="other"}': "500x60",
        "relay_events_duplicate_total": "0x60",
        "relay_events_added_total": "1007x60",
        'relay_waiting_events{stream="inbox"}': "7x60",
        'relay_oldest_waiting_timestamp_seconds{stream="inbox"}': "600x60",
    }
    assert not raised(tmp_path, {**WELL, **stands}, {"RelayNotDelivering", "RelayBehind"})


def test_a_missing_exporter_raises_redis_unreachable(tmp_path: Path) -> None:
    assert not raised(tmp_path, {"up": "0x60"}, {"RelayRedisUnreachable"})


def test_an_unaccounted_event_is_reported_for_a_day(tmp_path: Path) -> None:
    for_days = {name: values.replace("x60", "x1600") for name, values in WELL.items()}
    for_days["relay_events_added_total"] = "1+100x1600"
    assert not raised(tmp_path, for_days, {"RelayUnaccounted"}, minutes=1400)
    assert not raised(tmp_path, for_days, set(), minutes=1500)
    for_days["relay_events_added_total"] = "1+100x1490 149102+100x100"
    assert not raised(tmp_path, for_days, {"RelayUnaccounted"}, minutes=1510)


def test_every_alert_has_a_case() -> None:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == TROUBLE.keys()


def test_two_exporters_raise_an_alert_once(tmp_path: Path) -> None:
    second = {"relay_redis_memory_used_ratio": "0.85x60", 'relay_redis_memory_used_ratio{pod="two"}': "0.86x60"}
    assert not raised(tmp_path, {**WELL, **second}, {"RelayRedisMemory"})
