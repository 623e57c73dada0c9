"""What a CI system makes of a step of ours: its script, and the variables that it is run with.

Each system's own substitution, as far as the steps use it; anything else in a file is an error. Kubernetes' own, of
$(NAME) by the variables above, is part of Argo's and Tekton's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

PIPELINES = Path(__file__).parents[1] / "config" / "pipelines"


class Step(NamedTuple):
    """A script, the command that runs it (the script's file at its end), and its variables."""

    script: str
    shell: tuple[str, ...]
    variables: dict[str, str]


def github(inputs: dict[str, str], outer: dict[str, str], run: dict[str, str]) -> Step:
    """`outer` is the job's environment, `run` what GitHub sets (GITHUB_RUN_ID and its like)."""
    action = yaml.safe_load((PIPELINES / "github" / "action.yml").read_text())
    values = _given(inputs, {name: spec.get("default") for name, spec in action["inputs"].items()})
    [step] = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    assert "${{" not in step["run"], "an expression in a script executes its value"

    def expression(match: re.Match[str]) -> str:
        for term in match[1].split("||"):
            context, _, name = term.strip().partition(".")
            value = {"inputs": values, "env": outer}[context].get(name, "")
            if value:
                return value
        return ""

    variables = {name: re.sub(r"\$\{\{(.*?)\}\}", expression, text) for name, text in step["env"].items()}
    shell = {"bash": ("bash", "--noprofile", "--norc", "-eo", "pipefail")}[step["shell"]]
    return Step(step["run"], shell, {**outer, **run, **variables})


def gitlab(inputs: dict[str, str], outer: dict[str, str], run: dict[str, str]) -> Step:
    """`outer` are the variables of the whole file, which the job's win over."""
    header, jobs = yaml.safe_load_all((PIPELINES / "gitlab" / "templates" / "report.yml").read_text())
    specs = header["spec"]["inputs"]
    values = _given(inputs, {name: spec.get("default") for name, spec in specs.items()})
    for name, spec in specs.items():
        assert values[name] in spec.get("options", [values[name]])
    [(name, job)] = _replaced(jobs, r"\$\[\[ inputs\.([a-z-]+) \]\]", values).items()
    [script] = job["script"]
    assert "$[[" not in str(jobs["$[[ inputs.job ]]"]["script"])
    assert (name, job["stage"]) == (values["job"], values["stage"])
    assert job["image"] == {"name": values["relay-image"], "entrypoint": [""]}
    return Step(script, ("bash", "-eo", "pipefail"), {**outer, **job["variables"], **run})


def argo(parameters: dict[str, str], secret: dict[str, str], workflow: dict[str, str]) -> Step:
    """`workflow` has Argo's own `workflow.` variables, and as `pod` the uid of the step's pod."""
    document = yaml.safe_load((PIPELINES / "argo" / "workflow-template.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("argoproj.io/v1alpha1", "WorkflowTemplate")
    [template] = document["spec"]["templates"]
    specs = {each["name"]: each.get("value") for each in template["inputs"]["parameters"]}
    values = {f"inputs.parameters.{name}": value for name, value in _given(parameters, specs).items()}
    pod = {"metadata.uid": workflow["pod"]}
    values |= {f"workflow.{name}": value for name, value in workflow.items() if name != "pod"}
    script = template["script"]
    assert "{{" not in script["source"]
    container = _replaced({**script, "source": ""}, r"\{\{([a-z.-]+)\}\}", values)
    assert container["image"] == values["inputs.parameters.relay-image"]
    return Step(script["source"], tuple(script["command"]), _kubernetes(container["env"], secret | pod))


def tekton(parameters: dict[str, str], secret: dict[str, str], task_run: dict[str, str]) -> Step:
    document = yaml.safe_load((PIPELINES / "tekton" / "task.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("tekton.dev/v1", "Task")
    specs = {each["name"]: each.get("default") for each in document["spec"]["params"]}
    values = {f"params.{name}": value for name, value in _given(parameters, specs).items()}
    values |= {f"context.taskRun.{name}": value for name, value in task_run.items()}
    [step] = document["spec"]["steps"]
    assert "$(" not in step["script"]
    container = _replaced({**step, "script": ""}, r"\$\(([A-Za-z.-]+)\)", values)
    first_line = step["script"].partition("\n")[0]
    return Step(step["script"], (first_line.removeprefix("#!"),), _kubernetes(container["env"], secret))


def _given(inputs: dict[str, str], specs: dict[str, str | None]) -> dict[str, str]:
    """Fill in the defaults; what has none must be given, and what is not known must not."""
    assert set(inputs) <= set(specs)
    values = {name: inputs.get(name, default) for name, default in specs.items()}
    assert None not in values.values(), values
    return {name: str(value) for name, value in values.items()}


def _replaced(document: Any, pattern: str, values: dict[str, str]) -> Any:
    """Replace each tag in each text; every one must be known."""
    if isinstance(document, dict):
        return {_replaced(key, pattern, values): _replaced(value, pattern, values) for key, value in document.items()}
    if isinstance(document, list):
        return [_replaced(each, pattern, values) for each in document]
    return re.sub(pattern, lambda tag: values[tag[1]], document) if isinstance(document, str) else document


def _kubernetes(env: list[dict[str, Any]], secret: dict[str, str]) -> dict[str, str]:
    """Give a container's variables as the kubelet does: $(NAME) in a value is a variable's, if that stands above.

    `secret` has the pod's fields too, by their path.
    """
    variables: dict[str, str] = {}
    for each in env:
        if "value" in each:
            variables[each["name"]] = re.sub(
                r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda tag: variables.get(tag[1], tag[0]), each["value"]
            )
        elif "fieldRef" in each["valueFrom"]:
            variables[each["name"]] = secret[each["valueFrom"]["fieldRef"]["fieldPath"]]
        elif each["valueFrom"]["secretKeyRef"]["key"] in secret:
            variables[each["name"]] = secret[each["valueFrom"]["secretKeyRef"]["key"]]
        else:
            assert each["valueFrom"]["secretKeyRef"]["optional"]
    return variables
