"""Reference, alerts, runbook and dashboard name what is there, and each other."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.metrics import catalogue
from relay.settings import Settings

ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana" / "relay.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

#: What a rule or a panel may group by or select beside our labels: Prometheus's own.
TARGET_LABELS = {"job", "instance", "pod"}


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\brelay_[a-z_]+\b", expression))


def labels_in(expression: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|without) ?\(([^)]*)\)", expression)
    selected = re.findall(r"[{,]\s*([a-z_]+)\s*(?:=~|!~|!=|=)", expression)
    return {label.strip() for group in grouped for label in group.split(",")} | set(selected)


def labels_of(names: set[str]) -> set[str]:
    return {label for metric in catalogue.METRICS if catalogue.names([metric]) & names for label in metric.labels} | (
        {"le"} if any(name.endswith("_bucket") for name in names) else set()
    )


def test_the_metrics_page_is_fresh() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))["page"]()
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == page, "run: make docs"


@pytest.mark.parametrize("metric", catalogue.METRICS, ids=lambda metric: metric.name)
def test_help_is_a_sentence_that_fits_a_table(metric: catalogue.Metric) -> None:
    assert re.fullmatch(r"[A-Z0-9][^|\n]*\.", metric.help)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rule_asks_only_for_what_is_told(rule: dict[str, Any]) -> None:
    named = metrics_in(rule["expr"])
    assert named
    assert named <= catalogue.names() | RECORDED
    assert labels_in(rule["expr"]) <= labels_of(named) | TARGET_LABELS


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_says_how_urgent_it_is_and_leads_to_its_section(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in labels_of(metrics_in(rule["expr"]))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_section_of_an_alert_says_what_it_means_what_to_look_at_and_what_to_do(rule: dict[str, Any]) -> None:
    section = re.search(rf"^## {rule['alert']}$(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section
    assert re.findall(r"^\*\*(.+?)\.\*\*", section[1], re.MULTILINE) in (
        ["Meaning", "Look at", "Do"],
        ["Meaning", "Look at, do"],
    )


def test_runbook_has_no_section_of_an_alert_that_is_not_there() -> None:
    assert re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


def test_runbook_names_only_metrics_and_settings_that_are_there_and_its_own_sections() -> None:
    families = {metric.name for metric in catalogue.METRICS}
    assert metrics_in(RUNBOOK) <= families | RECORDED
    for section, key in re.findall(r"`(redis|broker|queue|api|delivery|worker|gateway|metrics)\.(\w+)`", RUNBOOK):
        assert hasattr(getattr(Settings(), section), key), f"{section}.{key}"
    anchors = {heading.lower() for heading in re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]*)\)", RUNBOOK)) <= anchors


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel_asks_only_for_what_is_told(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        named = metrics_in(target["expr"])
        assert named
        assert named <= catalogue.names() | RECORDED
        assert labels_in(target["expr"]) <= labels_of(named) | TARGET_LABELS
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= labels_of(named)
        assert target["datasource"]["uid"] == "${datasource}"


def test_dashboard_is_what_grafana_loads() -> None:
    """What Grafana's schema of a dashboard (kinds/dashboard, schemaVersion 36 and later) asks for."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD, "an id is of one Grafana; a provisioned dashboard has none"
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "job"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in {"row", "stat", "timeseries"}
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert {"defaults", "overrides"} <= panel["fieldConfig"].keys()
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_is_shown_or_watched() -> None:
    used = {name for rule in RULES for name in metrics_in(rule["expr"])}
    used |= {name for panel in PANELS for target in panel["targets"] for name in metrics_in(target["expr"])}
    shown = {metric.name for metric in catalogue.METRICS if catalogue.names([metric]) & used}
    assert {metric.name for metric in catalogue.METRICS} - shown == {
        "relay_build_info",
        "relay_last_success_timestamp_seconds",
        "relay_newest_added_timestamp_seconds",
    }
