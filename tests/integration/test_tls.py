"""Each client verifies the certificate of a Redis or a broker, and its name, before it sends anything."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from flower.utils.broker import Broker
from gateways import running
from tls_servers import HOST, WRONG, Case, Certificates, Recorder, RedisServer, redis_server

from relay import AsyncProducer, DeploymentEvent, Producer, QueueUnavailable
from relay.connections.clients import connect, connect_async
from relay.console.queue_client import QueueClient
from relay.metrics.exporter import Exporter
from relay.operations.doctor import broker as doctors_broker
from relay.operations.doctor import redis_server as redis_server_of_doctor
from relay.settings import Settings
from workers.scheduling.app import RelayApp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PASSWORD = "password-of-the-tests"
EVENT = DeploymentEvent.of(f"ghcr.io/acme/app@sha256:{'a' * 64}", environment="production")

#: Answers of a client that was refused: each library has its own.
REFUSED = "certificate|CERTIFICATE|did not take it|Redis cannot be reached"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def recorders(certificates: Certificates) -> Iterator[dict[Case, Recorder]]:
    with (
        Recorder(certificates.of(Case.RIGHT)) as right,
        Recorder(certificates.of(Case.OTHER_NAME)) as other_name,
        Recorder(certificates.of(Case.UNKNOWN_AUTHORITY)) as unknown,
        Recorder(certificates.of(Case.EXPIRED)) as expired,
    ):
        yield dict(zip(Case, (right, other_name, unknown, expired), strict=True))


@pytest.fixture(scope="module")
def server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    options = {"requirepass": PASSWORD, "tls-auth-clients": "optional"}
    with redis_server(tmp_path_factory.mktemp("redis"), options, certificates) as started:
        yield started


def settings_for(port: int, ca_file: Path | None, scheme: str = "rediss", **redis: Any) -> Settings:
    """Return settings whose queue and broker are on a port; of `amqps` the broker alone."""
    url = (
        f"{scheme}://user:{PASSWORD}@{HOST}:{port}/0"
        if scheme == "amqps"
        else f"{scheme}://:{PASSWORD}@{HOST}:{port}/0"
    )
    own = {"url": url, "ca_file": ca_file, **redis}
    quick = {"timeout": 2, "connect_timeout": 2}
    return Settings.load(**({"broker": own, "redis": quick} if scheme == "amqps" else {"redis": {**quick, **own}}))


def queue(settings: Settings) -> None:
    with connect(settings.redis) as client:
        client.ping()


def queue_of_asyncio(settings: Settings) -> None:
    async def ping() -> None:
        async with connect_async(settings.redis) as client:
            await client.ping()

    asyncio.run(ping())


def producer(settings: Settings) -> None:
    with Producer(settings=settings) as reporting:
        reporting.report_many([EVENT])


def producer_of_asyncio(settings: Settings) -> None:
    async def report() -> None:
        async with AsyncProducer(settings=settings) as reporting:
            await reporting.report_many([EVENT])

    asyncio.run(report())


def gateway(settings: Settings) -> None:
    own = settings.redis.model_dump() | {"timeout": 2.0}
    with running(settings.redis.url, redis=own) as started:
        answer = started.post()
        if answer.status_code != 202:
            raise QueueUnavailable(answer.text)


def console(settings: Settings) -> None:
    async def ask() -> None:
        shard = QueueClient(settings)
        try:
            await shard.ask(lambda client, _: client.ping())
        finally:
            await shard.close()

    asyncio.run(ask())


def metrics(settings: Settings) -> None:
    with closing(Exporter(settings)) as exporter:
        if b"relay_up 0" in exporter.scrape():
            raise QueueUnavailable("did not take it: relay_up 0")


def worker(settings: Settings) -> None:
    """Connect as the worker, its children and every `celery -A workers` command do."""
    with RelayApp(settings) as app, app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=4)
        connection.default_channel.queue_declare("celery", passive=False)


def flower(settings: Settings) -> None:
    """Ask for the queues' lengths as Flower does, which has a client of its own for that."""
    with RelayApp(settings) as app, app.connection() as connection:
        url = connection.as_uri(include_password=True)
        options, use_ssl = app.conf.broker_transport_options, app.conf.broker_use_ssl
    asyncio.run(Broker(url, http_api=None, broker_options=options, broker_use_ssl=use_ssl).queues(["celery"]))


def doctor(settings: Settings) -> None:
    doctors_broker.read_broker(settings, frozenset)


CLIENTS = [
    queue, queue_of_asyncio, producer, producer_of_asyncio, gateway, console, metrics, worker, flower, doctor,
]  # fmt: skip
each_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda each: each.__name__)


@each_client
def test_a_right_certificate_is_taken(
    client: Callable[[Settings], None], server: RedisServer, certificates: Certificates
) -> None:
    client(settings_for(server.tls_port, certificates.ca_file))


@pytest.mark.parametrize("case", WRONG)
@each_client
def test_a_wrong_certificate_is_refused_and_nothing_is_sent(
    client: Callable[[Settings], None],
    case: Case,
    recorders: dict[Case, Recorder],
    certificates: Certificates,
) -> None:
    recorder = recorders[case]
    recorder.forget()
    with pytest.raises(Exception, match=REFUSED):
        client(settings_for(recorder.port, certificates.ca_file))
    recorder.wait_for_handshakes()
    assert recorder.decrypted == b""


def test_a_client_shows_its_certificate_to_a_redis_that_asks_for_one(
    certificates: Certificates, tmp_path: Path
) -> None:
    with redis_server(tmp_path, {"requirepass": PASSWORD, "tls-auth-clients": "yes"}, certificates) as asking:
        settings = settings_for(asking.tls_port, certificates.ca_file, cert_file=certificates.client())
        for client in (queue, queue_of_asyncio, worker, flower):
            client(settings)
        with pytest.raises(Exception, match=r"(?i)ssl|closed|reset|certificate"):
            queue(settings_for(asking.tls_port, certificates.ca_file))


@each_client
def test_an_authority_is_trusted_only_if_it_is_named(
    client: Callable[[Settings], None], recorders: dict[Case, Recorder]
) -> None:
    """Without options, kombu and Celery take `rediss://` for "do not verify"."""
    recorder = recorders[Case.RIGHT]
    recorder.forget()
    with pytest.raises(Exception, match=REFUSED):
        client(settings_for(recorder.port, None))
    recorder.wait_for_handshakes()
    assert recorder.decrypted == b""


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (Case.OTHER_NAME, "its certificate is for another name"),
        (Case.UNKNOWN_AUTHORITY, "its certificate is from an unknown authority"),
        (Case.EXPIRED, "its certificate has expired"),
    ],
)
def test_the_doctor_says_what_to_do_about_a_certificate(
    case: Case, says: str, recorders: dict[Case, Recorder], certificates: Certificates
) -> None:
    recorder = recorders[case]
    settings = settings_for(recorder.port, certificates.ca_file)
    with connect(settings.redis, retries=0) as client:
        assert says in redis_server_of_doctor.check_connection(client, settings).do
    (fault,) = doctors_broker.check_broker(settings, frozenset)
    assert fault.do.startswith(says)


@pytest.mark.parametrize("client", [worker, doctor])
class TestRabbitMQ:
    """Brokers by `amqps://`: the first thing that a client sends is the protocol's header."""

    HEADER = b"AMQP\x00\x00\x09\x01"

    def test_a_right_certificate_is_taken(
        self, client: Callable[[Settings], None], recorders: dict[Case, Recorder], certificates: Certificates
    ) -> None:
        recorder = recorders[Case.RIGHT]
        recorder.forget(ends_at=self.HEADER)
        with pytest.raises(Exception, match="closed"):
            client(settings_for(recorder.port, certificates.ca_file, "amqps"))
        assert recorder.decrypted.startswith(self.HEADER)

    @pytest.mark.parametrize("case", WRONG)
    def test_a_wrong_certificate_is_refused_and_nothing_is_sent(
        self,
        client: Callable[[Settings], None],
        case: Case,
        recorders: dict[Case, Recorder],
        certificates: Certificates,
    ) -> None:
        recorder = recorders[case]
        recorder.forget()
        with pytest.raises(Exception, match=REFUSED):
            client(settings_for(recorder.port, certificates.ca_file, "amqps"))
        recorder.wait_for_handshakes()
        assert recorder.decrypted == b""


class TestManagementPlugin:
    """Flower reads the lengths of RabbitMQ's queues over HTTP, with the broker's user and password."""

    def ask(self, recorder: Recorder, certificates: Certificates) -> None:
        """Ask as Flower does, which takes a refusal for no queues."""
        with (
            RelayApp(settings_for(recorder.port, certificates.ca_file, "amqps")) as app,
            app.connection() as connection,
        ):
            url = connection.as_uri(include_password=True)
            asking = Broker(url, f"https://{HOST}:{recorder.port}/api/", broker_use_ssl=app.conf.broker_use_ssl)
        assert asyncio.run(asking.queues(["celery"])) == []

    def test_a_right_certificate_is_taken(self, recorders: dict[Case, Recorder], certificates: Certificates) -> None:
        recorder = recorders[Case.RIGHT]
        recorder.forget(ends_at=b"\r\n\r\n")
        self.ask(recorder, certificates)
        assert recorder.decrypted.startswith(b"GET /api/queues/")
        assert b"Authorization: Basic " in recorder.decrypted

    @pytest.mark.parametrize("case", WRONG)
    def test_a_wrong_certificate_is_refused_and_nothing_is_sent(
        self, case: Case, recorders: dict[Case, Recorder], certificates: Certificates
    ) -> None:
        recorder = recorders[case]
        recorder.forget()
        self.ask(recorder, certificates)
        recorder.wait_for_handshakes()
        assert recorder.decrypted == b""
