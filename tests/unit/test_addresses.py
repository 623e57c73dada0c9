"""A URL of Redis or a broker has options of a list, and all libraries get the same ones by their own names."""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import redis
from kombu import Connection
from kombu.utils.url import url_to_parts
from redis.asyncio.connection import parse_url as parse_for_asyncio
from redis.connection import parse_url
from typer.testing import CliRunner

from relay import addresses
from relay.cli import app
from relay.errors import ConfigurationError
from relay.settings import Settings
from workers.scheduling.app import RelayApp, make_app

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("no_settings")


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**overrides)
    return str(refused.value)


def names_that_redis_py_has() -> set[str]:
    """All that redis-py would take from a URL: options of its connections, its pool and its clients."""
    return {
        "decode_responses", "encoding", "encoding_errors", "protocol", "single_connection_client", "socket_timeout",
        "socket_connect_timeout", "socket_keepalive", "socket_read_size", "health_check_interval", "retry_on_timeout",
        "retry_on_error", "max_connections", "timeout", "client_name", "lib_name", "legacy_responses", "host", "port",
        "path", "credential_provider", "connection_class", "redis_connect_func", "parser_class", "ssl_ciphers",
        "ssl_min_version", "ssl_ca_data", "ssl_ca_path", "ssl_password", "ssl_validate_ocsp",
        *redis.connection.URL_QUERY_ARGUMENT_PARSERS,
    } - {"db", *addresses.TLS_OPTIONS}  # fmt: skip


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
@pytest.mark.parametrize("section", ["redis", "broker"])
@pytest.mark.parametrize("name", sorted(names_that_redis_py_has()))
def test_an_option_that_is_not_on_the_list_is_refused_by_name(section: str, scheme: str, name: str) -> None:
    place = "/run/redis.sock" if scheme == "unix" else "redis.example.com:6379/0"
    said = refusal(**{section: {"url": f"{scheme}://{place}?{name}=hunter2"}})

    assert f"{section}.url" in said
    assert name in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("section", "url", "expected"),
    [
        ("redis", "redis://h/0?socket_timeout=1", "socket_timeout is set by redis.timeout"),
        ("redis", "redis://h/0?DECODE_RESPONSES=true", "DECODE_RESPONSES is not an option"),
        ("redis", "redis://h/0?hunter2%40=1", "an option whose name is no word"),
        ("redis", "redis://h/0?ssl_cert_reqs=none", "ssl_cert_reqs is an option of TLS, and redis:// has none"),
        ("redis", "rediss://h/0?ssl_cert_reqs=hunter2", "ssl_cert_reqs must be required or none (CERT_REQUIRED or"),
        ("redis", "rediss://h/0?ssl_cert_reqs=", "ssl_cert_reqs must be given a value"),
        ("redis", "rediss://h/0?ssl_check_hostname=hunter2", "ssl_check_hostname must be true or false"),
        ("redis", "rediss://h/0?ssl_cert_reqs=required&ssl_cert_reqs=none", "has ssl_cert_reqs twice"),
        ("redis", "redis://h/hunter2", "must be a database's number"),
        ("redis", "redis://h/0/1", "must be a database's number"),
        ("redis", "redis://h?db=hunter2", "db must be a number"),
        ("redis", "redis://h/1?db=2", "has one database after the host and another as db"),
        ("redis", "redis://:one@h/1?password=hunter2", "has one password before the @ and another"),
        ("broker", "redis+socket:///run/redis.sock?db=1", "db is not an option"),
        ("broker", "amqp://h//?ssl=hunter2", "ssl is not an option"),
        ("broker", "amqp://h//?transport=hunter2", "transport is not an option"),
        ("broker", "amqps://h//?connect_timeout=1", "connect_timeout is set by redis.connect_timeout"),
        ("broker", "amqp://h//?ssl_cert_reqs=required", "write amqps://"),
        ("broker", "amqps://a//;amqp://b//", "must all be rediss://, or all amqps://"),
        ("broker", "amqps://a//?ssl_ca_certs=/one;amqps://b//?ssl_ca_certs=/two", "must have the same ssl_ options"),
    ],
)
def test_refusals_say_what_to_write_and_repeat_no_value(section: str, url: str, expected: str) -> None:
    said = refusal(**{section: {"url": url}})

    assert expected in said
    assert "hunter2" not in said


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_NONE", "ssl_check_hostname=false"])
@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("redis", "rediss://redis.example.com:6379/0"),
        ("broker", "rediss://redis.example.com:6379/1"),
        ("broker", "amqps://rabbit.example.com//"),
        ("broker", "REDISS://redis.example.com:6379/1"),
        ("broker", "sentinel://sentinel.example.com:26379"),
    ],
)
def test_a_server_is_not_verified_only_where_that_is_permitted(section: str, url: str, option: str) -> None:
    said = refusal(**{section: {"url": f"{url}?{option}"}})
    assert "the password would be sent to any server" in said
    assert f"{section}.allow_insecure (RELAY_{section.upper()}__ALLOW_INSECURE) = true" in said

    Settings.load(**{section: {"url": f"{url}?{option}", "allow_insecure": True}})


@pytest.mark.parametrize("spelling", ["required", "CERT_REQUIRED", "optional", "CERT_OPTIONAL", "REQUIRED"])
def test_both_spellings_of_a_verified_server_are_taken(spelling: str) -> None:
    settings = Settings.load(redis={"url": f"rediss://h/0?ssl_cert_reqs={spelling}"})
    for options in (settings.broker_address.ssl, addresses.for_redis(settings.redis.url, settings.redis).options):
        assert isinstance(options, dict)
        assert (options["ssl_cert_reqs"], options["ssl_check_hostname"]) == ("required", True)


@pytest.mark.parametrize("spelling", ["none", "CERT_NONE", "None"])
def test_both_spellings_of_an_unverified_server_mean_the_same(spelling: str) -> None:
    settings = Settings.load(redis={"url": f"rediss://h/0?ssl_cert_reqs={spelling}", "allow_insecure": True})
    for options in (settings.broker_address.ssl, addresses.for_redis(settings.redis.url, settings.redis).options):
        assert isinstance(options, dict)
        assert (options["ssl_cert_reqs"], options["ssl_check_hostname"]) == ("none", False)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://queue:6379/3", {"host": "queue", "port": 6379, "db": 3}),
        ("redis://queue?db=3", {"host": "queue", "db": 3}),
        ("redis://queue/3?db=3", {"host": "queue", "db": 3}),
        ("redis://us%3Ber:p%2F%3F%23%40%3B@queue/3", {"username": "us;er", "password": "p/?#@;", "db": 3}),
        (
            "redis://queue/3?username=us%3Ber&password=p%2F%26%40%3B",
            {"username": "us;er", "password": "p/&@;", "db": 3},
        ),
        ("redis://user@queue/3?password=p%25", {"username": "user", "password": "p%", "db": 3}),
        (
            "rediss://:p%3B@[::1]:6380/3?ssl_ca_certs=/ca.pem",
            {"host": "::1", "port": 6380, "password": "p;", "db": 3},
        ),
        ("unix:///run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3}),
        ("unix://user:p%3B@/run/redis.sock?db=3", {"path": "/run/redis.sock", "password": "p;", "db": 3}),
    ],
)
def test_all_clients_go_to_the_same_database_as_the_same_user(url: str, place: dict[str, Any]) -> None:
    settings = Settings.load(redis={"url": url})
    bare, options = addresses.for_redis(url, settings.redis)
    for parse in (parse_url, parse_for_asyncio):
        assert place.items() <= {**parse(bare), **options}.items()

    assert place.items() <= as_kombu_reads(settings.broker_url, settings.broker_address.ssl).items()


def as_kombu_reads(url: str, tls: dict[str, Any] | bool) -> dict[str, Any]:  # noqa: FBT001 - kombu's own type
    if url.startswith("redis+socket"):
        parts = url_to_parts(url.removeprefix("redis+"))
        path, database = f"/{parts.path}", int(parts.query["virtual_host"])
        return {"path": path, "db": database, "username": parts.username, "password": parts.password}
    with Connection(url, ssl=tls) as connection:
        place = {"host": connection.hostname, "port": connection.port, "db": int(connection.virtual_host)}
        return {**place, "username": connection.userid, "password": connection.password}


def test_files_of_a_url_are_those_of_the_settings() -> None:
    named = Settings.load(redis={"url": "rediss://h/0", "ca_file": "/ca", "cert_file": "/cert", "key_file": "/key"})
    in_url = "rediss://h/0?ssl_ca_certs=/ca&ssl_certfile=/cert&ssl_keyfile=/key"
    assert Settings.load(redis={"url": in_url}).broker_address == named.broker_address
    assert "ca_file is set, and url has ssl_ca_certs" in refusal(redis={"url": in_url, "ca_file": "/ca"})


def test_a_key_without_its_certificate_is_refused() -> None:
    assert "key_file is set, and cert_file is not" in refusal(redis={"url": "rediss://h/0", "key_file": "/key"})


@pytest.mark.parametrize("section", ["redis", "broker"])
def test_config_check_notes_an_authority_that_no_url_asks_for(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("authority")
    monkeypatch.setenv(f"RELAY_{section.upper()}__CA_FILE", str(file))
    said = CliRunner().invoke(app, ["config", "check"])

    assert said.exit_code == 0, said.output
    assert f"{section}.ca_file is set, and the URL is neither" in " ".join(said.output.split())


def test_the_broker_takes_what_it_does_not_set_from_the_queues_redis() -> None:
    queue = {"url": "rediss://h/0", "ca_file": "/ca", "cert_file": "/cert", "key_file": "/key"}
    alike = Settings.load(redis=queue).broker_address.ssl
    assert alike == addresses.for_redis(queue["url"], Settings.load(redis=queue).redis).options
    own = Settings.load(redis=queue, broker={"cert_file": "/celery.pem"}).broker_address.ssl
    assert own == {**dict(alike or {}), "ssl_certfile": "/celery.pem", "ssl_keyfile": "/celery.pem"}  # type: ignore[call-overload]
    elsewhere = Settings.load(redis=queue, broker={"url": "rediss://other/0"}).broker_address.ssl
    assert elsewhere == {**dict(alike or {}), "ssl_ca_certs": None, "ssl_certfile": None, "ssl_keyfile": None}  # type: ignore[call-overload]


def test_a_name_is_asked_of_each_rabbitmq_of_a_list() -> None:
    """kombu fills in one host's name and would keep it for the next."""
    alone = Settings.load(broker={"url": "amqps://localhost//"}).broker_address.ssl
    assert isinstance(alone, dict)
    assert alone["server_hostname"] == "localhost"  # kombu makes 127.0.0.1 of it
    assert alone["cert_reqs"] is ssl.CERT_REQUIRED

    several = Settings.load(broker={"url": "amqps://a//;amqps://b//"}).broker_address.ssl
    assert isinstance(several, dict)
    for host in ("a", "b"):
        assert "server_hostname" in several
        assert several["server_hostname"] is None  # as kombu looks
        several["server_hostname"] = host
        assert dict(**several)["server_hostname"] == host  # as py-amqp is given it


@pytest.mark.parametrize("variable", ["RELAY_REDIS", "RELAY_BROKER"])
@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=false"])
def test_config_check_notes_a_server_that_is_not_verified(
    variable: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{variable}__URL", f"rediss://h/0?{option}")
    monkeypatch.setenv(f"{variable}__ALLOW_INSECURE", "true")
    said = CliRunner().invoke(app, ["config", "check"])

    assert said.exit_code == 0, said.output
    assert "verifies no server" in " ".join(said.output.split())


@pytest.mark.parametrize("urls", ["rediss://a/0;rediss://b/0", "amqps://a//;amqps://b//"])
def test_each_broker_of_a_list_is_verified(urls: str) -> None:
    where = Settings.load(broker={"url": urls}).broker_address
    with Connection(where.url, ssl=where.ssl) as connection:
        for host in ("a", "b", "a"):
            assert connection.hostname == host
            assert connection.ssl == where.ssl
            connection.maybe_switch_next()


@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL"])
def test_another_broker_by_hand_is_verified_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`celery -b URL` sets CELERY_BROKER_URL, which Celery prefers to what the app says."""
    monkeypatch.setenv(name, "rediss://elsewhere:6379/0")
    with RelayApp(Settings.load(api={"url": "https://api.example.com", "token": "t"})) as relay:
        for connection in (relay.connection_for_read(), relay.connection(), relay.connection_for_read().clone()):
            if connection.hostname == "elsewhere":
                assert connection.ssl["ssl_cert_reqs"] == "required"
                assert connection.ssl["ssl_check_hostname"] is True
        assert relay.connection_for_read().hostname == "elsewhere"


def test_another_broker_by_hand_must_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "rediss://elsewhere:6379/0?ssl_cert_reqs=none")
    with pytest.raises(ConfigurationError, match="celery -b"):
        RelayApp(Settings.load())


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ca_file", "nonsense", "it must have certificates, in PEM"),
        ("ca_file", None, "No such file"),
        ("cert_file", "nonsense", "must be a certificate and its private key"),
    ],
)
@pytest.mark.parametrize("section", ["redis", "broker"])
def test_a_file_that_is_none_is_named_at_start_and_by_config_check(
    section: str, name: str, content: str | None, expected: str, request: pytest.FixtureRequest
) -> None:
    tmp_path, monkeypatch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
    file = tmp_path / "file.pem"
    if content:
        file.write_text(content)
    monkeypatch.setenv(f"RELAY_{section.upper()}__URL", "rediss://h/0")
    monkeypatch.setenv(f"RELAY_{section.upper()}__{name.upper()}", str(file))
    said = CliRunner().invoke(app, ["config", "check"])

    assert said.exit_code == 2, said.output
    assert f"{section}.{name}" in said.output
    assert expected in " ".join(said.output.split())
    if section == "broker":
        with pytest.raises(ConfigurationError, match=f"broker.{name}: {file}"):
            RelayApp(Settings.load())


@pytest.mark.parametrize("url", ["redis://h/0?decode_responses=true", "rediss://h/0?ssl_cert_reqs=CERT_NONE"])
@pytest.mark.parametrize("variable", ["RELAY_REDIS_URL", "RELAY_BROKER_URL"])
def test_config_check_agrees(variable: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, url)
    said = CliRunner().invoke(app, ["config", "check"])

    assert said.exit_code == 2, said.output
    assert url.partition("?")[2].partition("=")[0] in said.output


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("amqps://user:hunter2@rabbit.example.com:5671//", "https://rabbit.example.com:15671/api/"),
        ("amqps://[::1]//;amqps://other//", "https://[::1]:15671/api/"),
        ("amqp://rabbit.example.com//", None),
        ("rediss://redis.example.com/0", None),
    ],
)
def test_flower_sends_no_password_of_a_broker_with_tls_in_the_clear(
    url: str, api: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it asks RabbitMQ's management plugin by http://."""
    monkeypatch.delenv("FLOWER_BROKER_API", raising=False)
    monkeypatch.setenv("RELAY_BROKER_URL", url)
    make_app()
    assert os.environ.get("FLOWER_BROKER_API") == api
    monkeypatch.setenv("FLOWER_BROKER_API", "https://elsewhere/api/")
    make_app()
    assert os.environ["FLOWER_BROKER_API"] == "https://elsewhere/api/"


@pytest.mark.parametrize("section", ["REDIS", "BROKER"])
def test_an_empty_variable_names_no_file(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA_FILE", "CERT_FILE", "KEY_FILE"):
        monkeypatch.setenv(f"RELAY_{section}__{name}", "")
    assert getattr(Settings.load(), section.lower()).ca_file is None
