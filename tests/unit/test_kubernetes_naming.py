"""Names by templates; a template that cannot be filled in is refused when the settings load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pods import naming

from relay.errors import ConfigurationError
from relay.events.event import MAX_NAME_BYTES
from relay.kubernetes.naming import Place, shortened
from relay.settings import Settings
from relay.template import Template

WEB = Place(
    namespace="shop",
    workload="web",
    kind="Deployment",
    container="app",
    namespace_labels={"team": "checkout", "example.com/stage": "prod", "empty": "", "long": "x" * 254},
    pod_labels={"team": "web", "empty": "", "long": "x" * 254, "of-the-pod": "1"},
)


def refusal(**settings: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(kubernetes=settings)
    return str(refused.value)


# What things are called


def test_by_default_names_tell_containers_apart_and_environments_namespaces() -> None:
    assert naming().of_container(WEB) == ("shop", "shop/web/app")


def test_a_cluster_with_a_name_has_environments_of_its_own() -> None:
    assert naming(cluster="eu-1").of_container(WEB) == ("eu-1/shop", "shop/web/app")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{cluster}", "eu-1"),
        ("{kind}/{workload}", "Deployment/web"),
        ("{namespace_labels[team]}-{container}", "checkout-app"),
        ("{namespace_labels[example.com/stage]}", "prod"),
        ("{pod_labels[team]}-{namespace_labels[team]}", "web-checkout"),
        ("{{{namespace}}}", "{shop}"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_placeholders_stand_for_what_they_say(template: str, name: str) -> None:
    called = naming(cluster="eu-1", name_template=template)
    assert called.of_container(WEB) == ("eu-1/shop", name)


@pytest.mark.parametrize("label", ["owner", "empty", "long"])
@pytest.mark.parametrize("labels", ["namespace_labels", "pod_labels"])
@pytest.mark.parametrize("setting", ["name_template", "environment_template"])
def test_a_label_that_is_missing_or_longer_than_any_leaves_no_name(setting: str, labels: str, label: str) -> None:
    assert naming(**{setting: f"x-{{{labels}[{label}]}}"}).of_container(WEB) is None


def test_a_namespaces_label_is_not_taken_from_the_pod() -> None:
    assert naming(name_template="{namespace_labels[of-the-pod]}").of_container(WEB) is None


@given(st.text(), st.text())
def test_a_name_of_any_length_becomes_one_that_an_event_may_have(one: str, other: str) -> None:
    """Shortened in bytes, between characters, always to the same, and never two names to one."""
    for text in (one, one + "ä" * 128, "x" + one + "ä" * 128, one + "😀" * 70):
        name = shortened(text)
        size = len(text.encode())
        assert len(name.encode()) <= MAX_NAME_BYTES
        assert (name == text) is (size <= MAX_NAME_BYTES)
        assert shortened(text + other) != name or not other


@pytest.mark.parametrize("setting", ["name_template", "environment_template"])
def test_a_template_that_gives_more_than_a_name_may_have_is_shortened(setting: str) -> None:
    long = naming(**{setting: "{container}" + "/ä" * 200}).of_container(WEB)
    longer = naming(**{setting: "{container}" + "/ä" * 201}).of_container(WEB)
    assert long is not None
    assert long != longer
    assert all(len(part.encode()) <= MAX_NAME_BYTES for part in long)


@pytest.mark.parametrize("given", ["Job", "JOB", "CronJob"])
def test_kinds_are_ignored_by_the_controllers_or_the_workloads(given: str) -> None:
    assert naming(ignore_kinds=["x", given]).ignores_kind("CronJob", "Job")
    assert not naming(ignore_kinds=["x", given]).ignores_kind("Deployment", "ReplicaSet")


@pytest.mark.parametrize("name", ["", "  "])
def test_a_cluster_needs_a_name_or_none_on_purpose(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"CLUSTER_NAME.*'none'"):
        naming(cluster=name)


@pytest.mark.parametrize("name", ["none", " None "])
def test_a_cluster_without_a_name_on_purpose_is_nameless(name: str) -> None:
    called = naming(cluster=name)
    assert called.cluster == ""
    assert called.of_container(WEB) == ("shop", "shop/web/app")


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128, "eu\n1", "eu\x001"])
def test_a_cluster_name_that_no_source_may_be_is_refused(name: str) -> None:
    assert "cluster" in refusal(cluster=name)


def test_it_is_known_whether_labels_are_needed() -> None:
    assert not naming().needs_namespace_labels
    assert naming(environment_template="{namespace_labels[team]}").needs_namespace_labels


def test_namespaces_that_the_cluster_keeps_for_itself_are_ignored() -> None:
    assert all(naming().ignores(name) for name in ("kube-system", "openshift-ingress", "gke-managed-system"))
    assert not any(naming().ignores(name) for name in ("shop", "my-kube-system", "openshift"))
    assert not naming(ignore_namespaces=()).ignores("kube-system")


# What is refused


@pytest.mark.parametrize(
    "template",
    [
        "{pod}",
        "{}",
        "{0}",
        "{namespace.__class__}",
        "{namespace[0]}",
        "{namespace!r}",
        "{namespace:>10}",
        "{namespace_labels}",
        "{namespace_labels[]}",
        "{namespace_labels[a][b]}",
        "{namespace_labels[a].b}",
        "{namespace_labels[a}",
        "{pod_labels}",
        "{pod_labels[team].x}",
        "{ namespace }",
    ],
)
def test_an_unknown_placeholder_is_refused_with_those_there_are(template: str) -> None:
    reason = refusal(environment_template=template)
    assert "RELAY_KUBERNETES__ENVIRONMENT_TEMPLATE" in reason
    if "[a}" not in template:  # what does not even close has the grammar's own fault
        assert "{cluster}, {namespace}, {workload}, {kind}, {container}, {namespace_labels[KEY]}" in reason
        assert template.strip("{}").split("!")[0].split(":")[0] in reason


@pytest.mark.parametrize("template", ["{namespace", "namespace}", "{namespace{container}}"])
def test_braces_that_do_not_match_are_refused(template: str) -> None:
    assert "RELAY_KUBERNETES__NAME_TEMPLATE" in refusal(name_template=template)


@pytest.mark.parametrize("setting", ["name_template", "environment_template"])
def test_a_template_that_asks_for_a_cluster_needs_its_name(setting: str) -> None:
    assert Settings.load(kubernetes={setting: "{cluster}"})  # workers share the file and may not know
    with pytest.raises(ConfigurationError, match="CLUSTER_NAME"):
        naming(cluster="none", **{setting: "{cluster}"})


@given(st.text(alphabet="{}[]!:.ab_ "))
def test_a_template_is_read_or_refused_and_asks_only_for_what_is_known(text: str) -> None:
    try:
        template = Template.parse(text, known=("a", "b"), maps=("ab",))
    except ValueError:
        return
    assert all(asked in {"a", "b"} or asked.startswith("ab[") for asked in template.placeholders)
    assert template.fill(dict.fromkeys(template.placeholders, "x")) is not None
