"""`relay watch`: producers that watch a system."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from importlib.util import find_spec
from pathlib import Path  # noqa: TC003 - typer reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from relay.errors import ConfigurationError
from relay.producer.queue_producer import Producer
from relay.settings import Settings

if TYPE_CHECKING:
    from relay.kubernetes.cluster import Cluster
    from relay.settings import KubernetesSettings

watch = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Report what runs, and follow its changes.",
)


@watch.callback()
def _group() -> None:
    """Keep the command's name: a group of one would lose it."""


@watch.command()
def kubernetes(
    *,
    context: Annotated[str | None, typer.Option(help="The kubeconfig's context; default: its current one.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Only pods of this namespace.")] = None,
    selector: Annotated[str | None, typer.Option(help="Only pods with these labels.")] = None,
    heartbeat: Annotated[Path | None, typer.Option(help="Touch this file at every heartbeat.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Report what runs now, and exit.")] = False,
) -> None:
    """Report what the pods of a Kubernetes cluster run, now and as it changes.

    Lists all pods at the start and every hour, and follows their changes in between. Inside the cluster it uses the
    pod's service account, elsewhere the kubeconfig. Failures of the API server, of Redis and of the queue are retried
    until they end; nothing is lost. SIGTERM ends it with 0.

    CLUSTER_NAME must be set, to a unique name: clusters that share one overwrite each other's reports. `none` is for
    the only cluster that reports to a relay. Without a name, the exit code is 2.

    With --once it tries once, and exits with 69 if the API server or Redis is unavailable, 75 if the queue is full.

    \b
    Examples:
      CLUSTER_NAME=prod-eu-1 relay watch kubernetes
      relay watch kubernetes --context staging --namespace shop --selector app.kubernetes.io/part-of=shop
      relay watch kubernetes --once
      relay watch kubernetes --heartbeat /tmp/alive    # then: find /tmp/alive -mmin -3 | grep -q .
    """  # noqa: D301 - \b keeps typer from joining the lines
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if find_spec("kubernetes") is None:
        raise ConfigurationError(
            "watching a cluster needs the extra `kubernetes`: pip install 'deployment-relay[kubernetes]'"
        )
    given = {"namespace": namespace, "selector": selector, "heartbeat_file": heartbeat}
    settings = Settings.load(kubernetes={name: value for name, value in given.items() if value is not None})
    from relay.kubernetes.absences import Absences  # noqa: PLC0415 - with it
    from relay.kubernetes.publishing import NodePublisher  # noqa: PLC0415 - with it
    from relay.kubernetes.watcher import Watcher  # noqa: PLC0415 - with it

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.WARNING)
    logging.getLogger("relay").setLevel(logging.INFO)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Producer(settings=settings) as producer,
        _connected(settings.kubernetes, context) as cluster,
    ):
        watcher = Watcher(
            cluster,
            producer,
            settings.kubernetes,
            publisher=NodePublisher(settings),
            absences=Absences(settings),
            is_patient=not once,
        )
        if once:
            watcher.run_once()  # the first is a listing
        else:
            watcher.run()


def _connected(settings: KubernetesSettings, context: str | None) -> Cluster:
    """Connect to the cluster; the error also names a missing cluster name."""
    from relay.kubernetes.cluster import Cluster  # noqa: PLC0415 - needs the extra
    from relay.kubernetes.naming import Naming  # noqa: PLC0415 - with it

    try:
        return Cluster(settings, context=context)
    except ConfigurationError as error:
        try:
            Naming.of(settings)
        except ConfigurationError as other:
            raise ConfigurationError(f"{error}\n{other}") from error
        raise
