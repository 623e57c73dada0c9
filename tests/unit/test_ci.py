"""Origins: the run that reports, and the key that an event gets in it."""

from __future__ import annotations

from hashlib import sha256

import pytest

from relay.events.event import MAX_ID_BYTES, DeploymentEvent
from relay.producer.ci import Origin, detect

IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'a').hexdigest()}"
OTHER_IMAGE = f"ghcr.io/acme/shop@sha256:{sha256(b'b').hexdigest()}"

GITHUB = {
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.example.com",
    "GITHUB_REPOSITORY": "acme/shop",
    "GITHUB_RUN_ID": "1658821493",
    "GITHUB_RUN_ATTEMPT": "1",
    "GITHUB_JOB": "deploy",
    "GITHUB_ACTION": "__run_2",
    "GITHUB_OUTPUT": "/home/runner/work/_temp/_runner_file_commands/set_output_6d43",
}
GITLAB = {
    "CI": "true",
    "GITLAB_CI": "true",
    "CI_JOB_ID": "4711",
    "CI_JOB_URL": "https://gitlab.example.com/acme/shop/-/jobs/4711",
    "CI_PROJECT_PATH": "acme/shop",
}
CIRCLECI = {
    "CI": "true",
    "CIRCLECI": "true",
    "CIRCLE_WORKFLOW_JOB_ID": "8f1c3c2e-1d2b-4e58-9f0e-111111111111",
    "CIRCLE_BUILD_NUM": "88",
    "CIRCLE_BUILD_URL": "https://circleci.com/gh/acme/shop/88",
    "CIRCLE_NODE_INDEX": "0",
    "CIRCLE_PROJECT_USERNAME": "acme",
    "CIRCLE_PROJECT_REPONAME": "shop",
}
JENKINS = {
    "BUILD_TAG": "jenkins-acme-shop-main-12",
    "JOB_NAME": "acme/shop/main",
    "BUILD_NUMBER": "12",
    "BUILD_URL": "https://jenkins.example.com/job/acme/job/shop/job/main/12/",
    "STAGE_NAME": "Deploy",
}
ARGO = {"RELAY_ARGO_NAMESPACE": "ci", "RELAY_ARGO_WORKFLOW": "deploy-x7k2p", "RELAY_ARGO_RUN": "0f5c1a4e"}
ARGO["RELAY_ARGO_POD"] = "2a9a4a1f"
TEKTON = {"RELAY_TEKTON_NAMESPACE": "ci", "RELAY_TEKTON_TASKRUN": "report-1", "RELAY_TEKTON_RUN": "5d0e4a52"}


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    ("environ", "system", "source"),
    [
        (GITHUB, "github", "https://github.example.com/acme/shop/actions/runs/1658821493"),
        (without(GITHUB, "GITHUB_SERVER_URL"), "github", "https://github.com/acme/shop/actions/runs/1658821493"),
        (GITLAB, "gitlab", "https://gitlab.example.com/acme/shop/-/jobs/4711"),
        (without(GITLAB, "CI_JOB_URL"), "gitlab", "gitlab:acme/shop/4711"),
        (CIRCLECI, "circleci", "https://circleci.com/gh/acme/shop/88"),
        (without(CIRCLECI, "CIRCLE_BUILD_URL"), "circleci", "circleci:acme/shop/88"),
        (without(CIRCLECI, "CIRCLE_WORKFLOW_JOB_ID"), "circleci", "https://circleci.com/gh/acme/shop/88"),
        (JENKINS, "jenkins", "https://jenkins.example.com/job/acme/job/shop/job/main/12/"),
        (without(JENKINS, "BUILD_URL"), "jenkins", "jenkins:acme/shop/main/12"),
        (ARGO, "argo", "argo:ci/deploy-x7k2p"),
        (TEKTON, "tekton", "tekton:ci/report-1"),
        (TEKTON | GITHUB, "tekton", "tekton:ci/report-1"),
    ],
)
def test_a_run_is_detected_by_documented_variables(environ: dict[str, str], system: str, source: str) -> None:
    origin = detect(environ)
    assert origin is not None
    assert (origin.system, origin.source) == (system, source)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"CI": "true"},
        {"GITHUB_ACTIONS": "true"},
        without(GITHUB, "GITHUB_ACTIONS"),
        GITHUB | {"GITHUB_RUN_ID": ""},
        {"GITLAB_CI": "true"},
        {"CIRCLECI": "true"},
        {"BUILD_TAG": "v1.0", "JOB_NAME": "mine"},
        {"JOB_NAME": "mine", "BUILD_NUMBER": "3"},
        without(ARGO, "RELAY_ARGO_RUN"),
        TEKTON | {"RELAY_TEKTON_TASKRUN": ""},
        pytest.param(TEKTON | {"RELAY_TEKTON_RUN": "$(context.taskRun.uid)"}, id="a Tekton that does not know it"),
        pytest.param(ARGO | {"RELAY_ARGO_RUN": "{{workflow.uid}}"}, id="an Argo that does not know it"),
    ],
)
def test_incomplete_variables_detect_no_run(environ: dict[str, str]) -> None:
    assert detect(environ) is None


def key(environ: dict[str, str], line: int = 0, **fields: str) -> str:
    origin = detect(environ)
    assert origin is not None
    return origin.id_for(DeploymentEvent.of(fields.pop("image", IMAGE), **fields), line)


@pytest.mark.parametrize("environ", [GITHUB, GITLAB, CIRCLECI, JENKINS, ARGO, TEKTON])
def test_a_step_that_reports_again_gives_the_same_id(environ: dict[str, str]) -> None:
    first = key(environ, environment="production")
    assert first == key({**environ, "RUNNER_NAME": "another"}, environment="production")
    assert len(first.encode()) <= MAX_ID_BYTES


@pytest.mark.parametrize(
    ("environ", "change"),
    [
        (GITHUB, {"GITHUB_RUN_ID": "1658821494"}),
        (GITHUB, {"GITHUB_RUN_ATTEMPT": "2"}),
        (GITHUB, {"GITHUB_JOB": "rollback"}),
        (GITHUB, {"GITHUB_ACTION": "__run_3"}),
        (GITHUB, {"GITHUB_REPOSITORY": "acme/other"}),
        (GITHUB, {"GITHUB_OUTPUT": "/home/runner/work/_temp/_runner_file_commands/set_output_9d0c"}),
        (GITHUB | {"GITHUB_REPOSITORY": "x" * 300}, {"GITHUB_REPOSITORY": "y" * 300}),
        (GITLAB, {"CI_JOB_ID": "4712"}),
        (CIRCLECI, {"CIRCLE_WORKFLOW_JOB_ID": "8f1c3c2e-1d2b-4e58-9f0e-222222222222"}),
        (CIRCLECI, {"CIRCLE_NODE_INDEX": "1"}),
        (JENKINS, {"BUILD_TAG": "jenkins-acme-shop-main-13"}),
        (JENKINS, {"STAGE_NAME": "Roll back"}),
        (JENKINS, {"BUILD_URL": "https://another.example.com/job/acme/job/shop/job/main/12/"}),
        (ARGO, {"RELAY_ARGO_RUN": "6b0e3a52"}),
        (ARGO, {"RELAY_ARGO_POD": "6b0e3a52"}),
        (TEKTON, {"RELAY_TEKTON_RUN": "9c0e3a52"}),
    ],
)
def test_another_run_attempt_job_or_step_gives_another_id(environ: dict[str, str], change: dict[str, str]) -> None:
    """Otherwise a rollback to an image of that job would be a retry of its report."""
    assert key(environ) != key(environ | change)


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param(without(GITHUB, "GITHUB_RUN_ATTEMPT"), id="a Gitea that has no attempt"),
        pytest.param(
            GITHUB | {"GITEA_ACTIONS": "true", "GITHUB_RUN_ATTEMPT": ""}, id="a Gitea whose attempt is empty"
        ),
        pytest.param(without(GITHUB, "GITHUB_JOB"), id="github, no job"),
        pytest.param(without(GITHUB, "GITHUB_ACTION"), id="github, no step"),
        pytest.param(without(GITHUB, "GITHUB_REPOSITORY"), id="github, no repository"),
        pytest.param(GITHUB | {"GITHUB_RUN_ID": "1", "ACT": "true"}, id="act, whose runs are all number 1"),
        pytest.param(without(GITLAB, "CI_JOB_URL", "CI_PROJECT_PATH"), id="gitlab, nothing but a number"),
        pytest.param(without(CIRCLECI, "CIRCLE_NODE_INDEX"), id="circleci, no parallel node"),
        pytest.param(
            without(CIRCLECI, "CIRCLE_WORKFLOW_JOB_ID", "CIRCLE_BUILD_URL", "CIRCLE_PROJECT_REPONAME"),
            id="circleci, a number of no project",
        ),
        pytest.param(without(JENKINS, "STAGE_NAME"), id="jenkins, no stage"),
        pytest.param(without(JENKINS, "BUILD_URL"), id="jenkins, no address"),
        pytest.param(ARGO | {"RELAY_ARGO_POD": "{{pod.uid}}"}, id="argo, a template with a variable that is none"),
        pytest.param(GITHUB | {"GITHUB_RUN_ATTEMPT": " "}, id="a blank attempt"),
        pytest.param(without(ARGO, "RELAY_ARGO_POD"), id="argo, a template that does not set the pod"),
    ],
)
def test_an_unidentified_step_gives_a_source_and_no_id(environ: dict[str, str]) -> None:
    """Run 41 reports A, run 42 B, and run 41 once more A: with an id of the run alone the third would be dropped."""
    origin = detect(environ)
    assert origin is not None
    event = origin.credit(DeploymentEvent.of(IMAGE))
    assert event.id is None
    assert event.source == origin.source
    assert origin.credit(DeploymentEvent.of(IMAGE, id="mine")).id == "mine"
    with pytest.raises(ValueError, match="unknown step"):
        origin.id_for(event)


def test_giteas_runner_with_an_attempt_gives_an_id() -> None:
    gitea = GITHUB | {"ACT": "true", "GITEA_ACTIONS": "true"}
    assert key(gitea) != key(gitea | {"GITHUB_RUN_ATTEMPT": "2"})


def test_a_steps_reports_have_an_id_each() -> None:
    reports: list[dict[str, str]] = [
        {},
        {"image": OTHER_IMAGE},
        {"environment": "production"},
        {"name": "production"},
        {"platform": "linux/arm64"},
    ]
    assert len({key(GITHUB, **fields) for fields in reports}) == len(reports)


def test_equal_lines_of_a_file_have_an_id_each() -> None:
    """A, B, A in one file is a rollback."""
    assert key(GITHUB, 1) != key(GITHUB, 3)


def test_an_event_keeps_its_own_id_and_source() -> None:
    origin = Origin(system="github", source="run", step=("1",))
    own = DeploymentEvent.of(IMAGE, id="mine", source="me")
    assert origin.credit(own) == own
    half = origin.credit(DeploymentEvent.of(IMAGE, source="me"))
    assert half.source == "me"
    assert half.id == origin.id_for(half)


def test_variables_of_an_ascii_locale_are_read_as_utf_8() -> None:
    escaped = "acme/läden".encode().decode("ascii", errors="surrogateescape")
    plain, ascii_locale = (
        detect(GITHUB | {"GITHUB_REPOSITORY": "acme/läden"}),
        detect(GITHUB | {"GITHUB_REPOSITORY": escaped}),
    )
    assert plain is not None
    assert plain == ascii_locale
    assert "acme/läden" in plain.source


@pytest.mark.parametrize("path", ["x" * 300, "line\nbreak", "bytes \udcff"])
def test_an_invalid_source_does_not_refuse_the_report(path: str) -> None:
    origin = detect(GITHUB | {"GITHUB_REPOSITORY": path})
    assert origin is not None
    assert DeploymentEvent.from_body({**origin.credit(DeploymentEvent.of(IMAGE)).model_dump(exclude_none=True)})
    assert origin.source == "github"
