"""Detects the CI pipeline that runs this process, from the variables that its system documents; pure.

    system           detected by           step of a run
    GitHub Actions   GITHUB_ACTIONS=true   GITHUB_RUN_ID, its attempt, the job and the step
    GitLab CI        GITLAB_CI=true        CI_JOB_ID, which is new for a job that is run again
    CircleCI         CIRCLECI=true         CIRCLE_WORKFLOW_JOB_ID, new for a rerun, and the parallel node
    Jenkins          BUILD_TAG, JOB_NAME   BUILD_TAG, new for a rebuild, replay or restart, and the stage
    Argo Workflows   RELAY_ARGO_RUN        {{workflow.uid}} and the pod's uid, as config/pipelines/argo sets them
    Tekton           RELAY_TEKTON_RUN      $(context.taskRun.uid), as config/pipelines/tekton sets it

Gitea and Forgejo Actions set GitHub's variables, depending on the version without the attempt.

An *origin* fills in an event's `source` and idempotency key. The key is the same if one step of a run reports an
event again (a retry in the step's script, a lost answer). It differs in another run, attempt or job, because their
deployments are new, even of last week's image.

Two deployments with one key would be one. So there is a key only if each variable that it is built from is set:
without the attempt, for example, a rerun of a GitHub run is not distinguishable from a retry. Then the event gets
only the source, and the producer gives it a new id.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from relay.encoding import restored
from relay.events.event import MAX_NAME_BYTES
from relay.events.image import is_unset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.events.event import DeploymentEvent

#: Hexadecimal digits of a key's hash: 128 bits.
_HASH_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The step of a pipeline's run that reports."""

    #: Name of the system: "github", "gitlab".
    system: str
    #: Where the run is found: a URL if the system has one.
    source: str
    #: Identifies this step of this run and attempt among all of its system; None if a variable for it is missing, or
    #: known to be the same for every run.
    step: tuple[str, ...] | None

    def credit(self, event: DeploymentEvent, line: int = 0) -> DeploymentEvent:
        """Fill in the event's `source` and, where the step is known, its `id`, unless it has them."""
        update = {"source": event.source or self.source}
        if not event.id and self.step is not None:
            update["id"] = self.id_for(event, line)
        return event.model_copy(update=update)

    def id_for(self, event: DeploymentEvent, line: int = 0) -> str:
        """Return the idempotency key of an event of this step, and of a line if it is in a file.

        Raises `ValueError` if the step is unknown.
        """
        if self.step is None:
            raise ValueError("an unknown step has no idempotency key")
        what = (event.image.url, event.image.name or "", event.environment.name or "", str(event.platform), str(line))
        parts = "\0".join((self.source, *self.step, *what)).encode(errors="replace")
        return f"{self.system}-{sha256(parts).hexdigest()[:_HASH_DIGITS]}"


def detect(environ: Mapping[str, str]) -> Origin | None:
    """Return the step of a pipeline that a process with these variables runs in; None if there is none.

    The variables of config/pipelines' templates come first: their containers may inherit another system's variables.
    """
    environ = {name: _restored(value) for name, value in environ.items()}
    for recognise in (_argo, _tekton, _github, _gitlab, _circleci, _jenkins):
        origin = recognise(environ)
        if origin is not None:
            return origin
    return None


def _argo(environ: Mapping[str, str]) -> Origin | None:
    # One workflow may report A, B and A again from three of its steps, and `argo retry` keeps the workflow's uid:
    # only the pod is new for each of them.
    pod = "RELAY_ARGO_POD"
    return _templated("argo", "RELAY_ARGO_NAMESPACE", "RELAY_ARGO_WORKFLOW", "RELAY_ARGO_RUN", environ, pod)


def _tekton(environ: Mapping[str, str]) -> Origin | None:
    return _templated("tekton", "RELAY_TEKTON_NAMESPACE", "RELAY_TEKTON_TASKRUN", "RELAY_TEKTON_RUN", environ)


def _templated(
    system: str, namespace: str, name: str, run: str, environ: Mapping[str, str], *others: str
) -> Origin | None:
    # An engine that does not know a template's variables leaves them unreplaced, the same for every run.
    environ = {key: "" if is_unset(environ.get(key, "")) else environ[key] for key in (namespace, name, run, *others)}
    if not (environ[name] and environ[run]):
        return None
    source = f"{system}:{environ[namespace]}/{environ[name]}"
    return _origin(system, source, _all_of(environ, run, *others))


def _github(environ: Mapping[str, str]) -> Origin | None:
    if environ.get("GITHUB_ACTIONS") != "true" or not environ.get("GITHUB_RUN_ID"):
        return None
    server = environ.get("GITHUB_SERVER_URL", "https://github.com")
    repository = environ.get("GITHUB_REPOSITORY", "")
    # GITHUB_ACTION is the step: its id, or __run, __run_2 and so on.
    step = _all_of(environ, "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "GITHUB_JOB", "GITHUB_ACTION")
    # act numbers each local run 1; the runners of Gitea and Forgejo, which are built on act, count their runs.
    is_counted = environ.get("ACT") != "true" or environ.get("GITEA_ACTIONS") or environ.get("FORGEJO_ACTIONS")
    # The path of a file of each step distinguishes steps of one name: of two calls of one reusable workflow, of a
    # matrix, or of a composite action that is used twice.
    file = environ.get("GITHUB_OUTPUT", "")
    step = (*step, file) if step is not None and repository and is_counted else None
    return _origin("github", f"{server}/{repository}/actions/runs/{environ['GITHUB_RUN_ID']}", step)


def _gitlab(environ: Mapping[str, str]) -> Origin | None:
    if environ.get("GITLAB_CI") != "true" or not environ.get("CI_JOB_ID"):
        return None
    job, project = environ["CI_JOB_ID"], environ.get("CI_PROJECT_PATH", "")
    url = environ.get("CI_JOB_URL", "")
    # A job's number is unique on its server.
    return _origin("gitlab", url or f"gitlab:{project}/{job}", (job,) if url or project else None)


def _circleci(environ: Mapping[str, str]) -> Origin | None:
    # CIRCLE_WORKFLOW_JOB_ID is newer; self-hosted servers may only have the number.
    unique, number = environ.get("CIRCLE_WORKFLOW_JOB_ID", ""), environ.get("CIRCLE_BUILD_NUM", "")
    if environ.get("CIRCLECI") != "true" or not (unique or number):
        return None
    user, repository = environ.get("CIRCLE_PROJECT_USERNAME", ""), environ.get("CIRCLE_PROJECT_REPONAME", "")
    url, node = environ.get("CIRCLE_BUILD_URL", ""), environ.get("CIRCLE_NODE_INDEX", "")
    is_known = node and (unique or url or (user and repository))  # a number is unique in its project
    step = (unique or number, node) if is_known else None
    return _origin("circleci", url or f"circleci:{user}/{repository}/{number}", step)


def _jenkins(environ: Mapping[str, str]) -> Origin | None:
    tag, job = environ.get("BUILD_TAG", ""), environ.get("JOB_NAME")
    if not tag.startswith("jenkins-") or not job:
        return None
    # BUILD_URL is set only if the server knows its own address: without it, builds of two servers may be equal.
    # STAGE_NAME is set in a pipeline's stage: without it, all steps of a build are equal.
    url = environ.get("BUILD_URL", "")
    step = _all_of(environ, "BUILD_TAG", "STAGE_NAME") if url else None
    return _origin("jenkins", url or f"jenkins:{job}/{environ.get('BUILD_NUMBER', '')}", step)


def _all_of(environ: Mapping[str, str], *names: str) -> tuple[str, ...] | None:
    """Return the variables' values; None if one of them is missing, empty or blank."""
    values = tuple(environ.get(name, "").strip() for name in names)
    return values if all(values) else None


def _restored(value: str) -> str:
    """Return a variable's value decoded as UTF-8, or unchanged if it is not UTF-8."""
    try:
        return restored(value)
    except ValueError:
        return value


def _origin(system: str, source: str, step: tuple[str, ...] | None) -> Origin:
    """Return an origin; a source that is invalid in an event is replaced by the system's name.

    The step, of which the key is built, then includes the source.
    """
    if source.isprintable() and len(source.encode(errors="replace")) <= MAX_NAME_BYTES:
        return Origin(system=system, source=source, step=step)
    return Origin(system=system, source=system, step=step and (*step, source))
