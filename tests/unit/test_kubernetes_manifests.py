"""config/kubernetes says what it should: valid for Kubernetes, whole, locked in, true to the code and to compose."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from commands import GATEWAY, SERVICES, WATCHER

from relay.errors import ConfigurationError
from relay.gateway.auth import parse_secrets
from relay.hosts import EVERY_ADDRESS
from relay.kubernetes.naming import Naming
from relay.queue.keys import Keys
from relay.settings import DEFAULT_DESTINATION, SHORT_NAMES, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "kubernetes"
PAGE = (ROOT / "docs" / "kubernetes-install.md").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
COMPONENTS = sorted(path.parent for path in FOLDER.glob("components/*/kustomization.yaml"))
OVERLAYS = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))
NAMESPACE = "deployment-relay"

#: The trial's, for those who add the admission component to it.
SECRET = "admission-secret-of-the-trial"

#: The oldest Kubernetes that knows all that is used here (matchConditions are no beta any more), and the newest with
#: published schemas.
VERSIONS = ("1.30", kubernetes_validate.latest_version())

#: Of kinds that Kubernetes itself does not know, as their reference pages have them: version, the mandatory fields of
#: `spec`, and those beside that are used here, so that a slip of the pen is found.
FOREIGN = {
    "Issuer": ("cert-manager.io/v1", set(), {"selfSigned", "ca"}),
    "Certificate": (
        "cert-manager.io/v1",
        {"secretName", "issuerRef"},
        {"dnsNames", "duration", "renewBefore", "usages", "privateKey", "isCA", "commonName"},
    ),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {"scaleTargetRef", "triggers"},
        {"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"},
    ),
    "TriggerAuthentication": ("keda.sh/v1alpha1", set(), {"secretTargetRef"}),
    "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}, set()),
}

#: What a container of each role runs.
COMMANDS = {
    **SERVICES,
    "admission": GATEWAY,
    "watcher": WATCHER,
}

Document = dict[str, Any]


def documents_of(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def build(folder: Path, before: Iterable[Document] = ()) -> list[Document]:
    """Build what kustomize builds, as far as it is used here: resources, components, JSON patches, images."""
    [kustomization] = documents_of(folder / "kustomization.yaml")
    built = list(before)
    for name in kustomization.get("resources", ()):
        path = (folder / name).resolve()
        built += build(path) if path.is_dir() else documents_of(path)
    for name in kustomization.get("components", ()):
        built = build((folder / name).resolve(), built)
    built = copy.deepcopy(built)
    for patch in kustomization.get("patches", ()):
        patch_one(built, patch)
    for replacement in kustomization.get("replacements", ()):
        replace_one(built, replacement)
    for image in kustomization.get("images", ()):
        for container in (container for pod in pods(built) for container in pod["spec"]["containers"]):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return built


def patch_one(built: list[Document], patch: Mapping[str, Any]) -> None:
    """Patch what the target means: all of its kind, if it has no name."""
    targets = [
        each
        for each in built
        if each["kind"] == patch["target"]["kind"]
        and each["metadata"]["name"] == patch["target"].get("name", each["metadata"]["name"])
    ]
    assert len(targets) == 1 or (targets and "name" not in patch["target"])
    for target, step in product(targets, yaml.safe_load(patch["patch"])):
        *way, last = step["path"].strip("/").split("/")
        place: Any = target
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        if step["op"] == "remove":
            del place[last]
        else:
            assert step["op"] == "add"
            place[last] = step["value"]


def replace_one(built: list[Document], replacement: Mapping[str, Any]) -> None:
    """Put a value of one object into a segment of others' text."""
    source = replacement["source"]
    value: Any = named(built, source["kind"], source["name"])
    for part in source["fieldPath"].split("."):
        value = value[part]
    for target in replacement["targets"]:
        options = target["options"]
        for path in target["fieldPaths"]:
            *way, last = path.split(".")
            place: Any = named(built, target["select"]["kind"], target["select"]["name"])
            for part in way:
                place = place[int(part) if isinstance(place, list) else part]
            segments = place[last].split(options["delimiter"])
            segments[options["index"]] = value
            place[last] = options["delimiter"].join(segments)


def pods(built: list[Document]) -> list[Document]:
    return [each["spec"]["template"] for each in built if each["kind"] in {"Deployment", "StatefulSet"}]


def of_kind(built: list[Document], kind: str) -> list[Document]:
    return [each for each in built if each["kind"] == kind]


def named(built: list[Document], kind: str, name: str) -> Document:
    [found] = [each for each in of_kind(built, kind) if each["metadata"]["name"] == name]
    return found


def role_of(pod: Document) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def everything() -> list[Document]:
    """The trial with all components: each file of the folder is in it, but production's own."""
    built = build(FOLDER / "overlays" / "trial")
    for component in COMPONENTS:
        if component.name != "redis":  # the trial has it
            built = build(component, built)
    return built


ALL = everything()
PODS = {role_of(pod): pod for pod in pods(ALL)}
BUILDS = {**{overlay.name: build(overlay) for overlay in OVERLAYS}, "everything": ALL}
OURS = [document for document in ALL if document["kind"] not in FOREIGN]


def test_the_trial_takes_the_image_that_the_nodes_have() -> None:
    """Of an image called `latest` kubelets ask a registry otherwise, whatever was loaded into the nodes."""
    ours = [each for pod in pods(build(FOLDER / "overlays" / "trial")) for each in pod["spec"]["containers"]]
    policies = {
        each["name"]: each.get("imagePullPolicy") for each in ours if each["image"] == "deployment-relay:latest"
    }
    assert policies == dict.fromkeys(("gateway", "worker", "watcher", "sandbox"), "IfNotPresent")


def name_of(document: Document) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


class TestFiles:
    def test_each_file_is_listed_where_it_lies(self) -> None:
        for kustomization in FOLDER.rglob("kustomization.yaml"):
            listed = documents_of(kustomization)[0]["resources"]
            files = {path.name for path in kustomization.parent.iterdir()} - {"kustomization.yaml"}
            assert files == {name for name in listed if "/" not in name}, kustomization

    def test_each_component_can_be_chosen_in_production(self) -> None:
        text = (FOLDER / "overlays" / "production" / "kustomization.yaml").read_text(encoding="utf-8")
        chosen = re.findall(r"^[ #] - \.\./\.\./components/(\w+)$", text, re.MULTILINE)
        assert set(chosen) == {path.name for path in COMPONENTS} - {"redis"}

    def test_everything_has_a_name_of_its_own(self) -> None:
        names = [name_of(document) for document in ALL]
        assert len(names) == len(set(names))

    def test_everything_lies_in_the_one_namespace(self) -> None:
        clusterwide = {"Namespace", "ClusterRole", "ClusterRoleBinding", "ValidatingWebhookConfiguration"}
        for document in ALL:
            expected = None if document["kind"] in clusterwide else NAMESPACE
            assert document["metadata"].get("namespace") == expected, name_of(document)

    @pytest.mark.skipif(
        shutil.which("kubectl") is None, reason="no kubectl on PATH: install 1.21 or later, for its kustomize"
    )
    @pytest.mark.parametrize("name", BUILDS)
    def test_kustomize_builds_the_same(self, name: str, tmp_path: Path) -> None:
        folder = FOLDER / "overlays" / name
        if name == "everything":
            folder = tmp_path
            others = [component for component in COMPONENTS if component.name != "redis"]
            kustomization = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [os.path.relpath(FOLDER / "overlays" / "trial", tmp_path.resolve())],
                "components": [os.path.relpath(component, tmp_path.resolve()) for component in others],
            }
            (folder / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
        done = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=100
        )
        assert done.returncode == 0, done.stderr
        theirs = {name_of(document): document for document in yaml.safe_load_all(done.stdout)}
        assert theirs == {name_of(document): document for document in BUILDS[name]}


class TestShape:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("document", OURS, ids=name_of)
    def test_is_what_kubernetes_publishes(self, document: Document, version: str) -> None:
        kubernetes_validate.validate(document, version, strict=True)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_the_schemas_refuse_a_misspelt_field(self, version: str) -> None:
        wrong = copy.deepcopy(named(ALL, "Deployment", "relay-worker"))
        wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
            kubernetes_validate.validate(wrong, version, strict=True)

    @pytest.mark.parametrize("document", [each for each in ALL if each["kind"] in FOREIGN], ids=name_of)
    def test_kinds_of_others_are_as_their_pages_say(self, document: Document) -> None:
        version, mandatory, optional = FOREIGN[document["kind"]]
        assert document["apiVersion"] == version
        assert mandatory <= set(document["spec"]) <= mandatory | optional


class TestPods:
    @pytest.mark.parametrize("role", PODS)
    def test_are_what_pod_security_calls_restricted(self, role: str) -> None:
        """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
        spec = PODS[role]["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"].get("runAsUser") != 0
        assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in container.get("ports", ()))
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]  # noqa: S108 - the pod's own

    def test_the_namespace_takes_no_others(self) -> None:
        labels = named(ALL, "Namespace", NAMESPACE)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"

    @pytest.mark.parametrize("role", PODS)
    def test_ask_for_what_they_need_and_are_looked_after(self, role: str) -> None:
        [container] = PODS[role]["spec"]["containers"]
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]
        assert {"livenessProbe", "readinessProbe"} & set(container)

    @pytest.mark.parametrize("role", sorted(set(PODS) - {"redis"}))
    def test_run_what_compose_and_the_acceptance_tests_run(self, role: str) -> None:
        [container] = PODS[role]["spec"]["containers"]
        assert "command" not in container, "the image's entry point is the command"
        assert ("relay", *container["args"]) == COMMANDS[role]
        assert container["image"] == "deployment-relay:latest"
        if role in COMPOSE:
            assert PODS[role]["spec"]["terminationGracePeriodSeconds"] == seconds(COMPOSE[role]["stop_grace_period"])

    def test_a_worker_is_asked_what_compose_asks_it(self) -> None:
        [worker] = PODS["worker"]["spec"]["containers"]
        assert ["CMD", *worker["readinessProbe"]["exec"]["command"]] == COMPOSE["worker"]["healthcheck"]["test"]

    def test_redis_keeps_all_that_composes_does(self) -> None:
        [redis] = PODS["redis"]["spec"]["containers"]
        for options in (redis["command"], COMPOSE["redis"]["command"]):
            given = dict(zip(options[1::2], options[2::2], strict=True))
            assert (given["--appendonly"], given["--appendfsync"]) == ("yes", "always")
            assert (given["--maxmemory-policy"], given["--save"]) == ("noeviction", "")
        assert redis["image"] == COMPOSE["redis"]["image"]
        assert {"name": "data", "mountPath": "/data"} in redis["volumeMounts"]

    @pytest.mark.parametrize("role", sorted(set(PODS) - {"redis"}))
    def test_their_variables_are_settings(self, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
        [container] = PODS[role]["spec"]["containers"]
        settings = settings_with(variables(container), monkeypatch)
        if role == "worker":
            assert settings.redis.url == "redis://relay-redis:6379/0"
            assert (settings.api.url, str(settings.api.token_file)) == (
                "http://relay-sandbox:8300/",
                "/etc/relay/api/token",
            )
        if role in {"gateway", "admission"}:
            [port] = container["ports"]
            assert (settings.gateway.host, settings.gateway.port) == ("*", port["containerPort"])
            assert settings.gateway.admission == ("token" if role == "admission" else "off")
            assert (settings.gateway.admission_secret_file is not None) == (role == "admission")
            assert (settings.gateway.metrics, settings.gateway.operator_token.get_secret_value()) == ("off", "")
            assert (settings.gateway.tls_cert is not None) == (port["name"] == "https") == (role == "admission")
        if role == "metrics":
            assert settings.metrics.port == container["ports"][0]["containerPort"]

    @pytest.mark.parametrize("role", PODS)
    def test_listen_on_both_families(self, role: str) -> None:
        """Redis does so by itself. In a cluster with IPv6 alone, probes come by IPv6."""
        [container] = PODS[role]["spec"]["containers"]
        if "ports" in container and role != "redis":
            given = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
            host = given.get("--host") or variables(container)["RELAY_GATEWAY__HOST"]
            assert host in EVERY_ADDRESS

    @pytest.mark.parametrize("role", ["admission", "watcher"])
    def test_the_clusters_name_has_an_effect(self, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
        [container] = PODS[role]["spec"]["containers"]
        given = variables(container)
        assert settings_with(given, monkeypatch).kubernetes.cluster_name == "trial"
        settings = settings_with(given | {"CLUSTER_NAME": ""}, monkeypatch)  # as the base has it
        with pytest.raises(ConfigurationError, match="CLUSTER_NAME"):
            Naming.of(settings.kubernetes)
        assert role == "watcher" or settings.expects_reviews

    @pytest.mark.parametrize("role", sorted(set(PODS) - {"redis"}))
    def test_no_variable_is_misspelt(self, role: str) -> None:
        """Settings pass over a name that has no section, such as RELAY_REDIS_URI."""
        [container] = PODS[role]["spec"]["containers"]
        known = {f"RELAY_{section}__{key}".upper() for section, key in setting_names()}
        assert set(variables(container)) <= known | SHORT_NAMES.keys()

    def test_files_that_settings_name_are_mounted(self) -> None:
        for pod in PODS.values():
            [container] = pod["spec"]["containers"]
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            for mount in container["volumeMounts"]:
                assert mount["name"] in volumes or mount["name"] == "data"
            for value in variables(container).values():
                if value.startswith("/etc/"):
                    assert any(value.startswith(f"{path}/") for path in mounts), value


def seconds(text: str) -> int:
    return int(text.removesuffix("s")) if text.endswith("s") else 60 * int(text.removesuffix("m"))


def setting_names() -> set[tuple[str, str]]:
    found = set()
    for section, field in Settings.model_fields.items():
        for key in getattr(field.annotation, "model_fields", ()):
            found.add((section, key))
    return found


def settings_with(given: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a pod with these variables and no others."""
    for name in os.environ:
        if name.startswith(("RELAY_", "ATOMIST_")):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def variables(container: Document) -> dict[str, str]:
    """A container's variables with their values, as the trial has them."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= named(ALL, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", ()):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            secret = named(ALL, "Secret", reference["name"])["stringData"]
            found[variable["name"]] = secret.get(reference["key"], "redis://example.com:6379/0")
    return found


def secrets_of(built: list[Document]) -> set[tuple[str, str]]:
    """Each key of a Secret that something asks for."""
    found = set()
    for pod in pods(built):
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", ()):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    found.add((reference["name"], reference["key"]))
            values = [variable.get("value", "") for variable in container.get("env", ())]
            for volume in pod["spec"]["volumes"]:
                if "secret" in volume:
                    [mount] = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
                    files = {
                        value.rpartition("/")[2] for value in values if value.startswith(f"{mount['mountPath']}/")
                    }
                    assert files, f"{volume['name']} is mounted for nothing"
                    found |= {(volume["secret"]["secretName"], file) for file in files}
    for authentication in of_kind(built, "TriggerAuthentication"):
        found |= {(each["name"], each["key"]) for each in authentication["spec"]["secretTargetRef"]}
    return found


class TestReferences:
    @pytest.mark.parametrize("name", BUILDS)
    def test_each_secret_is_there_or_the_page_has_it_made(self, name: str) -> None:
        built = BUILDS[name]
        there = {
            (secret["metadata"]["name"], key) for secret in of_kind(built, "Secret") for key in secret["stringData"]
        }
        for certificate in of_kind(built, "Certificate"):
            there |= {(certificate["spec"]["secretName"], key) for key in ("tls.crt", "tls.key", "ca.crt")}
        commands = re.findall(r"create secret generic (\S+)((?:.*\\\n)*.*)", PAGE)
        made = {(secret, key) for secret, rest in commands for key in re.findall(r"--from-\w+=([\w.-]+)=", rest)}
        assert secrets_of(built) <= there | made
        assert name != "production" or secrets_of(built) & made

    @pytest.mark.parametrize("name", BUILDS)
    def test_what_is_named_exists(self, name: str) -> None:
        built = BUILDS[name]
        accounts = {each["metadata"]["name"] for each in of_kind(built, "ServiceAccount")}
        for pod in pods(built):
            assert pod["spec"]["serviceAccountName"] in accounts
            for container in pod["spec"]["containers"]:
                for source in container.get("envFrom", ()):
                    assert named(built, "ConfigMap", source["configMapRef"]["name"])
        for binding in of_kind(built, "ClusterRoleBinding"):
            assert named(built, "ClusterRole", binding["roleRef"]["name"])
            assert {subject["name"] for subject in binding["subjects"]} <= accounts
            assert {subject["namespace"] for subject in binding["subjects"]} == {NAMESPACE}
        for certificate in of_kind(built, "Certificate"):
            assert named(built, "Issuer", certificate["spec"]["issuerRef"]["name"])

    @pytest.mark.parametrize("name", BUILDS)
    def test_selectors_find_their_pods(self, name: str) -> None:
        built = BUILDS[name]
        labels = [pod["metadata"]["labels"] for pod in pods(built)]
        for workload in (*of_kind(built, "Deployment"), *of_kind(built, "StatefulSet")):
            assert selects(workload["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"])
            assert sum(selects(workload["spec"]["selector"], each) for each in labels) == 1
            for spread in workload["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
                assert spread["labelSelector"] == workload["spec"]["selector"]
        for budget in of_kind(built, "PodDisruptionBudget"):
            assert sum(selects(budget["spec"]["selector"], each) for each in labels) == 1
        for policy in of_kind(built, "NetworkPolicy"):
            assert any(selects(policy["spec"]["podSelector"], each) for each in labels), name_of(policy)

    @pytest.mark.parametrize("name", BUILDS)
    def test_services_lead_to_a_port(self, name: str) -> None:
        built = BUILDS[name]
        for service in of_kind(built, "Service"):
            [pod] = [
                each
                for each in pods(built)
                if service["spec"]["selector"].items() <= each["metadata"]["labels"].items()
            ]
            [container] = pod["spec"]["containers"]
            ports = {port["name"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
            for kind in ("livenessProbe", "readinessProbe"):
                probe = container.get(kind, {}).get("httpGet")
                assert probe is None or probe["port"] in ports

    def test_whoever_comes_in_twos_can_be_moved(self) -> None:
        """A budget for one pod alone would keep its node from being drained."""
        for budget in of_kind(ALL, "PodDisruptionBudget"):
            assert budget["spec"]["maxUnavailable"] == 1
        budgets = {budget["metadata"]["name"] for budget in of_kind(ALL, "PodDisruptionBudget")}
        deployments = of_kind(BUILDS["production"], "Deployment")
        several = {each["metadata"]["name"] for each in deployments if each["spec"]["replicas"] > 1}
        assert budgets == several == {"relay-gateway", "relay-worker", "relay-admission"}


class TestRights:
    def test_only_the_watcher_talks_to_kubernetes_and_may_only_look(self) -> None:
        assert {role for role, pod in PODS.items() if pod["spec"]["automountServiceAccountToken"]} == {"watcher"}
        assert PODS["watcher"]["spec"]["serviceAccountName"] == "relay-watcher"
        assert not any(each["automountServiceAccountToken"] for each in of_kind(ALL, "ServiceAccount"))
        [role] = of_kind(ALL, "ClusterRole")
        allowed = {
            (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
        }
        assert all(rule["apiGroups"] == [""] for rule in role["rules"])
        assert allowed == {("pods", "list"), ("pods", "watch"), ("nodes", "get"), ("nodes", "list"),
                           ("namespaces", "get"), ("namespaces", "list")}  # fmt: skip
        assert not of_kind(ALL, "Role")
        assert not of_kind(ALL, "RoleBinding")


def may_reach(source: str | Mapping[str, str], target: str, port: int) -> bool:
    """Return whether the policies let a pod reach another's port; a source outside is its namespace's labels."""
    labels = PODS[target]["metadata"]["labels"]
    into = rules("ingress", "from", labels, port)
    if not isinstance(source, str):
        return any(
            peer is None or ("namespaceSelector" in peer and selects(peer["namespaceSelector"], source))
            for peer in into
        )
    own = PODS[source]["metadata"]["labels"]
    out = rules("egress", "to", own, port)
    return any(is_one(peer, own) for peer in into) and any(is_one(peer, labels) for peer in out)


def rules(direction: str, peers: str, labels: Mapping[str, str], port: int) -> list[Document | None]:
    """The peers of all rules for a pod and port; None is everybody."""
    found: list[Document | None] = []
    for policy in of_kind(ALL, "NetworkPolicy"):
        if selects(policy["spec"]["podSelector"], labels):
            for rule in policy["spec"].get(direction, ()):
                if port in {each["port"] for each in rule["ports"]}:
                    found += rule.get(peers, [None])
    return found


def is_one(peer: Document | None, labels: Mapping[str, str]) -> bool:
    if peer is None:
        return True
    return "namespaceSelector" not in peer and "podSelector" in peer and selects(peer["podSelector"], labels)


class TestNetwork:
    def test_nothing_is_allowed_that_no_policy_allows(self) -> None:
        deny = named(ALL, "NetworkPolicy", "default-deny")["spec"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for policy in of_kind(ALL, "NetworkPolicy"):
            spec = policy["spec"]
            assert {kind.lower() for kind in spec["policyTypes"]} >= {"ingress", "egress"} & set(spec)

    def test_redis_is_reached_by_those_who_need_it(self) -> None:
        users = {role for role in PODS if role != "redis" and may_reach(role, "redis", 6379)}
        assert users == {"gateway", "admission", "worker", "watcher", "metrics"}
        assert may_reach({"kubernetes.io/metadata.name": "keda"}, "redis", 6379)
        assert not may_reach({"kubernetes.io/metadata.name": "default"}, "redis", 6379)
        asking = {role for role, pod in PODS.items() if "RELAY_REDIS_URL" in json.dumps(pod)}
        assert users == asking

    def test_the_gateway_is_reached_from_where_producers_are(self) -> None:
        assert may_reach({"deployment-relay/producer": "true"}, "gateway", 8080)
        assert not may_reach({"kubernetes.io/metadata.name": "default"}, "gateway", 8080)
        assert not any(may_reach(role, "gateway", 8080) for role in PODS)

    def test_the_api_server_reaches_admission_and_prometheus_the_metrics(self) -> None:
        assert may_reach({}, "admission", 8443)
        assert may_reach({"kubernetes.io/metadata.name": "monitoring"}, "metrics", 9780)
        assert not may_reach({"kubernetes.io/metadata.name": "default"}, "metrics", 9780)

    def test_only_workers_and_the_watcher_go_out(self) -> None:
        outward = {
            role
            for role, pod in PODS.items()
            for port in (443, 6443)
            if any(peer and "ipBlock" in peer for peer in rules("egress", "to", pod["metadata"]["labels"], port))
        }
        assert outward == {"worker", "watcher"}
        assert may_reach("worker", "sandbox", 8300)
        assert not may_reach("gateway", "sandbox", 8300)

    def test_all_of_them_can_ask_for_names(self) -> None:
        for pod in PODS.values():
            assert rules("egress", "to", pod["metadata"]["labels"], 53)


class TestWebhook:
    webhook: Document = of_kind(ALL, "ValidatingWebhookConfiguration")[0]["webhooks"][0]

    def test_stops_no_deployment(self) -> None:
        assert self.webhook["failurePolicy"] == "Ignore"
        assert self.webhook["timeoutSeconds"] == 2
        assert self.webhook["sideEffects"] == "NoneOnDryRun"
        assert self.webhook["admissionReviewVersions"] == ["v1"]
        assert self.webhook["matchPolicy"] == "Equivalent"

    def test_asks_about_pods_alone(self) -> None:
        asked = {
            (operation, resource)
            for rule in self.webhook["rules"]
            for operation in rule["operations"]
            for resource in rule["resources"]
        }
        assert asked == {("CREATE", "pods"), ("UPDATE", "pods/status"), ("UPDATE", "pods/ephemeralcontainers")}
        assert all((rule["apiGroups"], rule["apiVersions"]) == ([""], ["v1"]) for rule in self.webhook["rules"])

    def test_its_own_namespace_is_left_alone_by_the_watcher_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        [given] = [each for each in build(FOLDER / "base") if each["kind"] == "ConfigMap"]
        data = given["data"] | {"CLUSTER_NAME": "prod-eu-1"}
        naming = Naming.of(settings_with(data, monkeypatch).kubernetes)
        [selector] = self.webhook["namespaceSelector"]["matchExpressions"]
        assert all(naming.ignores(name) for name in selector["values"])
        assert not naming.ignores("shop")

    def test_leaves_the_clusters_own_and_its_own_namespace_alone(self) -> None:
        [expression] = self.webhook["namespaceSelector"]["matchExpressions"]
        assert (expression["key"], expression["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
        assert {"kube-system", NAMESPACE} <= set(expression["values"])

    def test_is_asked_where_the_gateway_answers_with_a_certificate_for_that_name(self) -> None:
        called = self.webhook["clientConfig"]["service"]
        service = named(ALL, "Service", called["name"])
        assert (called["namespace"], called["path"]) == (NAMESPACE, f"/admission/{SECRET}")
        assert called["port"] in {port["port"] for port in service["spec"]["ports"]}
        assert service["spec"]["selector"].items() <= PODS["admission"]["metadata"]["labels"].items()
        annotations = of_kind(ALL, "ValidatingWebhookConfiguration")[0]["metadata"]["annotations"]
        namespace, _, certificate = annotations["cert-manager.io/inject-ca-from"].partition("/")
        spec = named(ALL, "Certificate", certificate)["spec"]
        assert namespace == NAMESPACE
        assert spec["dnsNames"] == [f"{called['name']}.{called['namespace']}.svc"]
        volumes = {volume["name"]: volume for volume in PODS["admission"]["spec"]["volumes"]}
        assert volumes["tls"]["secret"]["secretName"] == spec["secretName"]

    @pytest.mark.parametrize("name", ["production", "everything"])
    def test_has_the_secret_that_the_gateway_reads(self, name: str) -> None:
        built = BUILDS[name]
        secret = named(built, "Secret", "relay-admission-secret")["stringData"]["secret"]
        [webhook] = of_kind(built, "ValidatingWebhookConfiguration")[0]["webhooks"]
        assert webhook["clientConfig"]["service"]["path"] == f"/admission/{secret}"
        assert ("relay-admission-secret", "secret") in secrets_of(built)

    def test_the_published_secret_of_production_lets_no_gateway_start(self) -> None:
        secret = named(BUILDS["production"], "Secret", "relay-admission-secret")["stringData"]["secret"]
        with pytest.raises(ConfigurationError, match="openssl rand"):
            parse_secrets(secret)
        assert parse_secrets(SECRET).match(SECRET.encode())

    def test_each_condition_has_a_name_and_balanced_parentheses(self) -> None:
        names = [condition["name"] for condition in self.webhook["matchConditions"]]
        assert len(names) == len(set(names)) > 0
        for condition in self.webhook["matchConditions"]:
            assert condition["expression"].count("(") == condition["expression"].count(")")


class TestScaling:
    def test_goes_by_the_streams_that_there_are(self) -> None:
        [scaler] = of_kind(ALL, "ScaledObject")
        streams = [trigger["metadata"]["stream"] for trigger in scaler["spec"]["triggers"]]
        assert streams == [Keys().inbox, Keys().of_outbox(DEFAULT_DESTINATION, "production").outbox]
        for trigger in scaler["spec"]["triggers"]:
            assert trigger["type"] == "redis-streams"
            assert int(trigger["metadata"]["streamLength"]) > 0
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
            assert not {"consumerGroup", "lagCount", "pendingEntriesCount"} & set(trigger["metadata"])
            assert named(ALL, "TriggerAuthentication", trigger["authenticationRef"]["name"])

    def test_is_the_only_one_to_say_how_many_workers_there_are(self) -> None:
        [scaler] = of_kind(ALL, "ScaledObject")
        scaled = named(ALL, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in scaled["spec"]
        assert 2 <= scaler["spec"]["minReplicaCount"] < scaler["spec"]["maxReplicaCount"]

    def test_the_monitor_leaves_our_labels_their_names(self) -> None:
        """Its operator's own label `endpoint`, the port's name, would make ours an `exported_endpoint`."""
        [monitor] = of_kind(ALL, "ServiceMonitor")
        assert all(each.get("honorLabels") is True for each in monitor["spec"]["endpoints"])

    def test_the_monitor_finds_its_service(self) -> None:
        [monitor] = of_kind(ALL, "ServiceMonitor")
        [service] = [
            each
            for each in of_kind(ALL, "Service")
            if selects(monitor["spec"]["selector"], each["metadata"].get("labels", {}))
        ]
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }
