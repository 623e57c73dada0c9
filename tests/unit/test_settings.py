"""Settings come from arguments, environment and file; wrong and unsafe ones are refused by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from relay.errors import ConfigurationError
from relay.settings import SHORT_NAMES, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

API = "https://api.example.com/v1"

pytestmark = pytest.mark.usefixtures("no_settings")


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**overrides)
    return str(refused.value)


# Sources


def test_nothing_has_to_be_set() -> None:
    settings = Settings.load()

    assert settings.redis.url == "redis://127.0.0.1:6379/0"
    assert settings.broker_url == settings.redis.url
    assert settings.defaults.environment == "deployed"
    assert settings.delivery.reassert_after == 86_400
    assert settings.gateway.host == "127.0.0.1"


def test_file_is_read(config: Callable[[str], Path]) -> None:
    config(
        f"""
        [api]
        url = "{API}"
        timeout = "5s"
        [environments."edge-*"]
        platform = "linux/arm64"
        """
    )
    settings = Settings.load()

    assert (settings.api.url, settings.api.timeout) == (API, 5.0)
    assert settings.environments["edge-*"].platform == "linux/arm64"


@pytest.mark.parametrize("name", ["RELAY_API_URL", "RELAY_API__URL", "ATOMIST_URL"])
def test_environment_beats_file_setting_by_setting(
    name: str, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config('[api]\nurl = "https://file.example.com"\ntimeout = 5')
    monkeypatch.setenv(name, API)
    settings = Settings.load()

    assert settings.api.url == API
    assert settings.api.timeout == 5.0


def test_argument_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_API_URL", "https://environment.example.com")
    monkeypatch.setenv("RELAY_API__TIMEOUT", "5s")
    settings = Settings.load(api={"url": API})

    assert settings.api.url == API
    assert settings.api.timeout == 5.0


VALUES = {"url": API, "token": "t0ken", "token_file": "/run/secrets/token", "cluster": "eu-1"}


@pytest.mark.parametrize(("name", "path"), SHORT_NAMES.items())
def test_short_name_stands_for_its_setting(name: str, path: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    section, key = path
    kind = key.removeprefix("gateway_")
    given = "redis://queue:6379/0" if section == "redis" else VALUES[kind]
    monkeypatch.setenv(name, given)
    value = getattr(getattr(Settings.load(), section), key)

    assert (value.get_secret_value() if key.endswith("token") else str(value)) == given


@pytest.mark.parametrize(
    ("first", "second"), [("RELAY_API_URL", "ATOMIST_URL"), ("RELAY_API_TOKEN", "ATOMIST_APIKEY")]
)
def test_relays_own_short_name_takes_precedence(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(second, "https://second.example.com")
    monkeypatch.setenv(first, "https://first.example.com")
    api = Settings.load().api

    assert "https://first.example.com" in {api.url, api.token.get_secret_value()}


def test_empty_short_name_is_not_set(config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config(f'[api]\nurl = "{API}"')
    monkeypatch.setenv("RELAY_API_URL", "")

    assert Settings.load().api.url == API


@pytest.mark.parametrize(
    ("redis_url", "broker_url", "expected"),
    [
        ("redis://queue:6379/0", "", "redis://queue:6379/0"),
        ("redis://queue:6379/0", "redis://wakeups:6379/1", "redis://wakeups:6379/1"),
        ("unix:///run/redis.sock", "", "redis+socket:///run/redis.sock"),
    ],
)
def test_broker_is_the_queues_redis_unless_it_has_its_own(redis_url: str, broker_url: str, expected: str) -> None:
    assert Settings.load(redis={"url": redis_url}, broker={"url": broker_url}).broker_url == expected


# Durations


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (2, 2.0),
        (0.25, 0.25),
        ("2", 2.0),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("1.5m", 90.0),
        ("24h", 86_400.0),
        ("90d", 7_776_000.0),
        (" 30 s ", 30.0),
    ],
)
def test_duration_is_a_number_with_or_without_a_unit(given: object, seconds: float) -> None:
    assert Settings.load(delivery={"reassert_after": given}).delivery.reassert_after == pytest.approx(seconds)


def test_duration_from_the_environment_has_a_unit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_DELIVERY__BACKOFF_MAX", "10m")

    assert Settings.load().delivery.backoff_max == 600.0


@pytest.mark.parametrize("given", ["", "soon", "-5s", "5 weeks", "1h30m", "s", "1e3s", "5,5s"])
def test_malformed_duration_is_refused_with_an_example(given: str) -> None:
    assert refusal(delivery={"linger": given}) == (
        "delivery.linger (RELAY_DELIVERY__LINGER): not a duration: write seconds, or a number with a unit such as "
        '"250ms", "30s", "24h"'
    )


@pytest.mark.parametrize(("given", "accepted"), [(0, False), ("0s", False), (-1, False), ("1ms", True)])
def test_duration_that_must_not_be_zero_is_not(given: object, accepted: bool) -> None:  # noqa: FBT001 - of a table
    if accepted:
        assert Settings.load(worker={"budget": given}).worker.budget > 0
    else:
        assert "worker.budget (RELAY_WORKER__BUDGET): " in refusal(worker={"budget": given})


def test_pause_may_be_zero() -> None:
    assert Settings.load(delivery={"linger": "0s"}).delivery.linger == 0


# Refusals


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[api]\ncolour = 1", "api.colour"),
        ("[colours]\nred = 1", "colours"),
        ("colour = 1", "colour"),
        ('[environments."edge-*"]\nplatfrom = "linux/arm64"', "environments.edge-*.platfrom"),
    ],
)
def test_unknown_key_of_the_file_is_refused_by_name(text: str, named: str, config: Callable[[str], Path]) -> None:
    config(text)
    message = refusal()

    assert re.match(rf"{re.escape(named)}( \(RELAY_.*\))?: is not a setting$", message)
    assert len(message.splitlines()) == 1


def test_unknown_key_of_the_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_API__COLOUR", "red")

    assert "(RELAY_API__COLOUR)" in refusal()


def test_all_faults_are_named_at_once(config: Callable[[str], Path]) -> None:
    config('[api]\ncolour = 1\n[worker]\nsweep = "often"\n[queue]\nnamespace = "a b"')
    named = {line.partition(" ")[0] for line in refusal().splitlines()}

    assert named == {"api.colour", "worker.sweep", "queue.namespace"}


def test_byte_order_mark_of_a_file_is_skipped(config: Callable[[str], Path], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n", encoding="utf-8-sig")
    config(f'\ufeff[api]\ntoken_file = "{token}"\n[defaults]\nenvironment = "produktion-ö"\n')

    settings = Settings.load()

    assert (settings.defaults.environment, settings.api.read_token()) == ("produktion-ö", "secret")


def test_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    monkeypatch.setenv("RELAY_CONFIG", str(path))

    assert refusal() == f"RELAY_CONFIG names {path}, which is no file"


@pytest.mark.parametrize(
    ("path", "why"), [("/proc/self/mem", "Input/output error"), (f"/{'x' * 300}", "File name too long")]
)
def test_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, path: str, why: str) -> None:
    """Neither can be read by root, who may run the tests."""
    monkeypatch.setenv("RELAY_CONFIG", path)

    assert refusal() == f"RELAY_CONFIG names {path}, which cannot be read: {why}"


def test_file_that_is_no_toml_is_refused(config: Callable[[str], Path]) -> None:
    config("[api\nurl = 1")

    assert re.search(r"the configuration \(.+\) cannot be read", refusal())


def test_section_in_the_environment_that_is_no_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_API", "{")

    assert refusal() == "RELAY_API must be JSON: an object with its keys"


@pytest.mark.parametrize(
    ("url", "insecure", "expected"),
    [
        ("https://api.example.com", False, None),
        ("http://127.0.0.1:8000/x", False, None),
        ("http://127.8.8.8", False, None),
        ("http://[::1]:8000", False, None),
        ("http://localhost", False, None),
        ("http://LOCALHOST", False, None),
        ("http://api.example.com", False, "http:// to api.example.com, so the token would travel in the clear"),
        ("HTTP://api.example.com", False, "would travel in the clear"),
        ("http://10.0.0.1", False, "would travel in the clear"),
        ("http://0.0.0.0", False, "would travel in the clear"),
        ("http://localhost.example.com", False, "would travel in the clear"),
        ("http://127.0.0.1.example.com", False, "would travel in the clear"),
        ("http://api.example.com", True, None),
        ("https://user:password@api.example.com", False, "must not carry a user or password"),
        ("https://user@api.example.com", False, "must not carry a user or password"),
        ("http://user:password@127.0.0.1", True, "must not carry a user or password"),
        ("http://127.0.0.1@api.example.com", False, "must not carry a user or password"),
        ("ftp://api.example.com", False, "must be http:// or https:// with a host"),
        ("api.example.com", False, "must be http:// or https:// with a host"),
        ("https://", False, "must be http:// or https:// with a host"),
        ("http://[::1", False, "api"),
    ],
)
def test_url_keeps_the_token_safe(url: str, insecure: bool, expected: str | None) -> None:  # noqa: FBT001 - of a table
    if expected is None:
        assert Settings.load(api={"url": url, "allow_insecure": insecure}).api.url == url
    else:
        assert expected in refusal(api={"url": url, "allow_insecure": insecure})


@pytest.mark.parametrize("scheme", ["https", "http", "ftp"])
def test_refusal_of_a_url_has_no_password(scheme: str) -> None:
    assert "hunter2" not in refusal(api={"url": f"{scheme}://user:hunter2@api.example.com"})


@pytest.mark.parametrize(
    ("section", "key", "url", "expected"),
    [
        ("redis", "url", "redis://:hunter2/x+1@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "redis://:hunter2?x@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "rediss://user:hunter2#x@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "redis://:hunter2[x@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "redis://:6379/hunter2@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "redis://:6379?hunter2@queue:6379/0", "must be percent-encoded"),
        ("redis", "url", "unix://:hunter2/x@/run/redis.sock", "must be percent-encoded"),
        ("redis", "url", "user:hunter2@queue:6379/0", "must begin with redis://, rediss:// or unix://"),
        ("redis", "url", "", "must begin with redis://, rediss:// or unix://"),
        ("broker", "url", "redis://:hunter2/x@wakeups:6379/0", "must be percent-encoded"),
        ("broker", "url", "amqp://user:hunter2/x@wakeups/vhost", "must be percent-encoded"),
        ("api", "url", "reporter:hunter2@api.example.com/deployments", "must be http:// or https:// with a host"),
        ("api", "url", "https://reporter:hunter2/x@api.example.com", "must be percent-encoded"),
        ("producer", "gateway_url", "reporter:hunter2@relay.example.com", "must be http:// or https:// with a host"),
        ("producer", "gateway_url", "https://reporter:hunter2/x@relay.example.com", "must be percent-encoded"),
    ],
)
def test_refusal_of_a_url_says_what_to_do_and_repeats_nothing(
    section: str, key: str, url: str, expected: str
) -> None:
    said = refusal(**{section: {key: url}})

    assert expected in said
    assert "hunter2" not in said
    assert "__" not in said, "the short name is the one that is known"


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("redis", "redis://user:p%2F%3F%23%40@queue:6379/0?db=0"),
        ("redis", "redis://"),
        ("redis", "unix://user:password@/run/redis@0.sock?db=1"),
        ("broker", "redis://:one@a:6379/0;redis://:two@b:6379/0"),
        ("broker", "mongodb://user:password@a:27017,b:27018/wakeups"),
        ("broker", "memory://"),
    ],
)
def test_every_url_of_a_redis_or_a_broker_is_accepted(section: str, url: str) -> None:
    assert getattr(Settings.load(**{section: {"url": url}}), section).url == url


@pytest.mark.parametrize(("lease", "accepted"), [("15s", True), ("11s", True), ("10.9s", False), ("5s", False)])
def test_lease_outlives_the_longest_request_by_a_margin(lease: str, accepted: bool) -> None:  # noqa: FBT001 - of a table
    overrides = {"worker": {"lease": lease}, "api": {"timeout": "10s"}}
    if accepted:
        Settings.load(**overrides)
    else:
        message = refusal(**overrides)
        assert "worker.lease" in message
        assert "api.timeout (10 s)" in message


@pytest.mark.parametrize(
    ("host", "token", "accepted"),
    [
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("localhost", "", True),
        ("0.0.0.0", "", False),
        ("::", "", False),
        ("10.0.0.1", "", False),
        ("gateway.example.com", "", False),
        ("0.0.0.0", "t0ken", True),
    ],
)
def test_gateway_without_token_listens_on_loopback_only(host: str, token: str, accepted: bool) -> None:  # noqa: FBT001
    overrides = {"gateway": {"host": host, "token": token}}
    if accepted:
        assert Settings.load(**overrides).gateway.host == host
    else:
        assert f"host {host} is reachable from elsewhere: set a token" in refusal(**overrides)


@pytest.mark.parametrize("namespace", ["", "a b", "a{b", "a:b", "x" * 65])
def test_namespace_fits_between_braces(namespace: str) -> None:
    assert refusal(queue={"namespace": namespace}).startswith("queue.namespace (RELAY_QUEUE__NAMESPACE): ")


def test_settings_do_not_change() -> None:
    settings = Settings.load()

    with pytest.raises(ValueError, match="frozen"):
        settings.api.url = API  # type: ignore[misc]


# The API and its token


def test_token_is_read_from_its_file_each_time_and_stripped(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" first\n")
    api = Settings.load(api={"url": API, "token": "other", "token_file": file}).require_api()
    assert api.read_token() == "first"

    file.write_text("second")
    assert api.read_token() == "second"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_token_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    settings = Settings.load(api={"url": API, "token_file": file})

    with pytest.raises(ConfigurationError, match=f"api.token_file {file} cannot be read"):
        settings.require_api()


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        ({}, "set RELAY_API_URL"),
        ({"token": "t0ken"}, "set RELAY_API_URL"),
        ({"url": API}, "set RELAY_API_TOKEN or RELAY_API_TOKEN_FILE"),
    ],
)
def test_missing_settings_for_delivery_are_named(api: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        Settings.load(api=api).require_api()


# Secrets


@pytest.mark.parametrize(
    "overrides",
    [
        {"api": {"url": API, "token": "hunter2"}},
        {"gateway": {"token": "hunter2"}},
        {"redis": {"url": "redis://user:hunter2@queue:6379/0"}},
        {"broker": {"url": "redis://user:hunter2@wakeups:6379/0"}},
    ],
    ids=["api.token", "gateway.token", "redis.url", "broker.url"],
)
def test_secrets_are_masked_when_shown(overrides: dict[str, Any]) -> None:
    settings = Settings.load(**overrides)

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize(
    "overrides",
    [
        {"api": {"token": ["hunter2"]}},
        {"api": {"url": "http://api.example.com", "token": "hunter2"}},
        {"gateway": {"token": {"hunter2": 1}}},
    ],
)
def test_faults_repeat_no_secret(overrides: dict[str, Any]) -> None:
    assert "hunter2" not in refusal(**overrides)


@pytest.mark.parametrize(
    ("given", "registry"), [("", ""), (" ghcr.io/acme/ ", "ghcr.io/acme"), ("localhost:5000", "localhost:5000")]
)
def test_default_registry_may_have_a_path(given: str, registry: str) -> None:
    assert Settings.load(gateway={"default_registry": given}).gateway.default_registry == registry


@pytest.mark.parametrize("given", ["acme", "https://ghcr.io", "ghcr.io/Acme", "ghcr.io/acme@x", "ghcr.io acme"])
def test_malformed_default_registry_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="default_registry"):
        Settings.load(gateway={"default_registry": given})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELAY_GATEWAY__HOSTS", "relay.example.com"),
        ("RELAY_GATEWAY__TRUSTED_PROXIES", "10.0.0.1,s3cret"),
        ("RELAY_KUBERNETES__IGNORE_KINDS", "[Job]"),
    ],
)
def test_variable_of_a_list_that_is_no_json_is_named_with_an_example(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal() == f'{name} must be JSON: ["first", "second"]'


@pytest.mark.parametrize(
    "host", ["https://relay.example.com", "relay.example.com/", "*.example.com", "", "a b", "2001:db8::1"]
)
def test_further_host_of_the_gateway_is_a_name(host: str) -> None:
    assert "gateway.hosts.0" in refusal(gateway={"hosts": [host]})
    assert "write it as relay.example.com" in refusal(gateway={"hosts": [host]})
