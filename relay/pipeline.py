"""Which pipeline runs this process? Read from the variables that its system documents; pure.

    system           told by               a run's step is
    GitHub Actions   GITHUB_ACTIONS=true   GITHUB_RUN_ID, its attempt, the job and the step
    GitLab CI        GITLAB_CI=true        CI_JOB_ID, which is new for a job that is run again
    CircleCI         CIRCLECI=true         CIRCLE_WORKFLOW_JOB_ID, new for a rerun, and the parallel node
    Jenkins          BUILD_TAG, JOB_NAME   BUILD_TAG, new for a rebuild, and the stage
    Argo Workflows   RELAY_ARGO_RUN        {{workflow.uid}}, as config/pipelines/argo sets it
    Tekton           RELAY_TEKTON_RUN      $(context.taskRun.uid), as config/pipelines/tekton sets it

An *origin* fills in what a report does not say of itself: its `source`, and an idempotency key. That is the same when
one step of a run reports the same event once more (a retry in the step's script, an answer that was lost), and
another in another run, attempt or job: what those deploy is news again, be it the image of last week.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from relay.event import MAX_NAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from relay.event import DeploymentEvent

#: Hexadecimal digits of a key's hash: 128 bits.
_HASH_DIGITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The step of a run that reports."""

    #: Our name for the system: "github", "gitlab".
    system: str
    #: Where a person finds the run: a URL if the system tells one.
    source: str
    #: What tells this step of this run, in this attempt, from every other of its system.
    step: tuple[str, ...]

    def credit(self, event: DeploymentEvent, line: int = 0) -> DeploymentEvent:
        """Fill in the event's `source` and `id`; what it has of them stays."""
        return event.model_copy(
            update={"source": event.source or self.source, "id": event.id or self.id_for(event, line)}
        )

    def id_for(self, event: DeploymentEvent, line: int = 0) -> str:
        """Return the idempotency key of an event that this step reports, as that line of a file if it is in one."""
        what = (event.image.url, event.image.name or "", event.environment.name or "", str(event.platform), str(line))
        parts = "\0".join((self.source, *self.step, *what)).encode(errors="replace")
        return f"{self.system}-{sha256(parts).hexdigest()[:_HASH_DIGITS]}"


def detect(environ: Mapping[str, str]) -> Origin | None:
    """Return the step of a pipeline that a process with these variables runs in; None if none is told whole.

    What our own templates set comes first: their containers may inherit another system's variables.
    """
    for recognise in (_argo, _tekton, _github, _gitlab, _circleci, _jenkins):
        origin = recognise(environ)
        if origin is not None:
            return origin
    return None


def _argo(environ: Mapping[str, str]) -> Origin | None:
    return _templated("argo", "RELAY_ARGO_NAMESPACE", "RELAY_ARGO_WORKFLOW", "RELAY_ARGO_RUN", environ)


def _tekton(environ: Mapping[str, str]) -> Origin | None:
    return _templated("tekton", "RELAY_TEKTON_NAMESPACE", "RELAY_TEKTON_TASKRUN", "RELAY_TEKTON_RUN", environ)


def _templated(system: str, namespace: str, name: str, run: str, environ: Mapping[str, str]) -> Origin | None:
    if not (environ.get(name) and environ.get(run)):
        return None
    return _origin(system, f"{system}:{environ.get(namespace, '')}/{environ[name]}", environ[run])


def _github(environ: Mapping[str, str]) -> Origin | None:
    if environ.get("GITHUB_ACTIONS") != "true" or not environ.get("GITHUB_RUN_ID"):
        return None
    server = environ.get("GITHUB_SERVER_URL", "https://github.com")
    run = environ["GITHUB_RUN_ID"]
    # GITHUB_ACTION is the step: its id, or __run, __run_2 and so on.
    parts = ("GITHUB_RUN_ATTEMPT", "GITHUB_JOB", "GITHUB_ACTION")
    source = f"{server}/{environ.get('GITHUB_REPOSITORY', '')}/actions/runs/{run}"
    return _origin("github", source, run, *(environ.get(part, "") for part in parts))


def _gitlab(environ: Mapping[str, str]) -> Origin | None:
    if environ.get("GITLAB_CI") != "true" or not environ.get("CI_JOB_ID"):
        return None
    job = environ["CI_JOB_ID"]
    source = environ.get("CI_JOB_URL") or f"gitlab:{environ.get('CI_PROJECT_PATH', '')}/{job}"
    return _origin("gitlab", source, job)


def _circleci(environ: Mapping[str, str]) -> Origin | None:
    # CIRCLE_WORKFLOW_JOB_ID is the younger of the two; servers of one's own may only have the number.
    job = environ.get("CIRCLE_WORKFLOW_JOB_ID") or environ.get("CIRCLE_BUILD_NUM")
    if environ.get("CIRCLECI") != "true" or not job:
        return None
    project = f"{environ.get('CIRCLE_PROJECT_USERNAME', '')}/{environ.get('CIRCLE_PROJECT_REPONAME', '')}"
    source = environ.get("CIRCLE_BUILD_URL") or f"circleci:{project}/{environ.get('CIRCLE_BUILD_NUM', '')}"
    return _origin("circleci", source, job, environ.get("CIRCLE_NODE_INDEX", ""))


def _jenkins(environ: Mapping[str, str]) -> Origin | None:
    tag, job = environ.get("BUILD_TAG", ""), environ.get("JOB_NAME")
    if not tag.startswith("jenkins-") or not job:
        return None
    # BUILD_URL is there only if the server knows its own address.
    source = environ.get("BUILD_URL") or f"jenkins:{job}/{environ.get('BUILD_NUMBER', '')}"
    return _origin("jenkins", source, tag, environ.get("STAGE_NAME", ""))


def _origin(system: str, source: str, *step: str) -> Origin:
    """Make an origin; a source that no event may have gives way to the system's name, or the report would fail."""
    fits = source.isprintable() and len(source.encode(errors="replace")) <= MAX_NAME_BYTES
    return Origin(system=system, source=source if fits else system, step=step)
