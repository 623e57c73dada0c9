"""The Celery app: each setting with its reason."""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from kombu.entity import Queue

from relay import addresses
from relay.errors import ConfigurationError
from relay.settings import Settings
from workers.scheduling import compression, logs, stdio, tasks
from workers.scheduling.broker import follow_failovers
from workers.scheduling.poller import PollerStep
from workers.scheduling.shutdown import StoppingStep, handle_signals_in_child
from workers.scheduling.wakeups import DELIVER, FORGET, INTAKE

_log = logging.getLogger(__name__)

#: Thresholds of a child's garbage collector: objects allocated until the youngest generation is collected, and
#: collections of one generation until the next is collected too.
GC_THRESHOLDS = (50_000, 20, 50)


class RelayApp(Celery):  # type: ignore[misc]  # Celery ships no types
    """A Celery app with the relay's settings, tasks, logs and poller."""

    log_cls = "workers.scheduling.logs:WorkerLogging"

    def __init__(self, settings: Settings) -> None:
        follow_failovers()
        compression.bound()
        super().__init__("relay", broker=settings.broker_url, set_as_current=False)
        self.relay_settings = settings
        self.conf.update(configuration(settings))
        settings.check_broker_files()
        # Flower's own clients read these; Celery's connections get theirs in `_connection`. Celery prefers
        # CELERY_BROKER_URL and -b to the settings.
        self.conf.broker_use_ssl = self._address(self.conf.broker_url).for_flower
        self.steps["worker"] |= {PollerStep, StoppingStep}
        tasks.register(self)
        logs.begin_with_worker()
        worker_process_init.connect(self._warm_up, weak=False)

    def __reduce__(self) -> tuple[type[RelayApp], tuple[Settings]]:
        """Pickle the settings only, for a spawned child: Celery's own `__reduce__` would lose the tasks."""
        return RelayApp, (self.relay_settings,)

    def _connection(self, url: str, *args: Any, ssl: Any = None, **options: Any) -> Any:
        """Connect to a broker with the TLS options of the settings, wherever its URL comes from.

        All connections of Celery and Flower are made here. By default kombu verifies no certificate.
        """
        where = self._address(url)
        return super()._connection(where.url, *args, ssl=where.ssl if ssl is None else ssl, **options)

    def _address(self, url: str) -> addresses.ForKombu:
        """Return the broker's URL without options, and its TLS options."""
        settings = self.relay_settings
        if url == settings.broker_url:  # the settings also hold the options of this URL
            return settings.broker_address
        try:
            addresses.check_list(url)
            return addresses.for_kombu(url, settings.broker_tls)
        except ValueError as error:
            raise ConfigurationError(f"the broker's URL (CELERY_BROKER_URL, or celery -b): {error}") from None

    def _warm_up(self, **_: Any) -> None:
        """Import and connect in a child before its first wake-up instead of during it.

        A run allocates objects by the batch and drops them together: collecting this rarely saves a fifth of its
        processor time (benchmarks/). The modules need no collecting at all.
        """
        stdio.ignore_write_errors()
        handle_signals_in_child()
        tasks.runtime_of(self)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        _log.info("a process of the pool is ready")


def make_app() -> RelayApp:
    """Return the app for the settings of the environment."""
    stdio.ignore_write_errors()
    app = RelayApp(Settings.load())
    # By default Flower queries RabbitMQ's management plugin by http://, with the broker's password.
    if api := addresses.management_api(app.conf.broker_url):
        os.environ.setdefault("FLOWER_BROKER_API", api)
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings, as a dictionary so that a test can read them."""
    return {
        # A lost wake-up is repeated, so wake-ups are acknowledged early, expire, and have no result.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "result_backend": None,
        "task_acks_late": False,
        # Nor does the broker keep a record of unacknowledged wake-ups, which it could not while out of memory. Queues
        # have names, so that Flower shows what is queued where, and wake-ups do not queue behind reports. Flower
        # expects a list.
        "task_queues": [
            _queue(INTAKE, no_ack=True),
            _queue(DELIVER, no_ack=True),
            _queue(settings.broker.report_queue),
        ],
        "task_default_queue": settings.broker.report_queue,
        "task_routes": {INTAKE: {"queue": INTAKE}, DELIVER: {"queue": DELIVER}, FORGET: {"queue": DELIVER}},
        "task_serializer": "json",
        "accept_content": ["json"],  # never unpickle a message from the broker
        # A run lasts seconds: a busy worker must not hold wake-ups that an idle one could answer.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_concurrency": settings.worker.concurrency,
        # The poller's thread lives in the main process: children are spawned, not forked from it.
        "worker_pool_start_method": "spawn",
        "worker_send_task_events": True,  # Flower
        "worker_redirect_stdouts": False,
        "worker_consumer": "workers.scheduling.celery_reconnect:Consumer",
        # Wait for a broker that is away for long; by default Celery exits after 100 attempts.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that answers with an error (out of memory, read-only, cannot persist) counts as away; by default
        # Celery exits.
        "broker_channel_error_retry": True,
        "broker_transport_options": _transport_options(settings),
        # Connections are made as they are needed. A low limit hangs Flower: each of its threads holds one connection
        # while it waits for another.
        "broker_pool_limit": 100,
    }


def _queue(name: str, *, no_ack: bool = False) -> Queue:
    return Queue(name, routing_key=name, no_ack=no_ack)  # type: ignore[no-untyped-call]  # kombu types it in part


def _transport_options(settings: Settings) -> dict[str, Any]:
    """Return kombu's options. Without these a worker on a half-open connection never consumes again."""
    return {
        "socket_timeout": settings.redis.timeout,  # kombu sets None: a publish to a hung Redis would never return
        "socket_connect_timeout": settings.redis.connect_timeout,
        "socket_keepalive": True,
        "health_check_interval": 5,
        # Reports that a killed worker had not acknowledged are delivered again after this long; their ids make a
        # repeat harmless.
        "visibility_timeout": 60,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "priority_steps": [0],  # no priorities: one list a queue instead of four
        "prioritised_queue": settings.broker.report_queue,  # except where others send (workers/scheduling/broker.py)
        "max_retries": 1,  # with kombu's default, a refused port would cost each wake-up six seconds
        "interval_start": 0,
        "interval_step": 0.1,
        "interval_max": 0.2,
    }
