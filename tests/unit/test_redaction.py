"""The one redaction: which secrets are masked, in which spellings, and what a URL shows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.redaction import MASK, PAGE_CHARACTERS, Secrets, redact_token, redact_url
from relay.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def secrets(**sections: dict[str, Any]) -> Secrets:
    return Secrets.of(Settings.load(**sections))


@given(st.text(st.characters(exclude_characters=MASK), min_size=1), st.text(), st.text())
def test_secret_is_masked_in_any_text(secret: str, before: str, after: str) -> None:
    masked = secrets(api={"token": secret}).mask(f"{before}{secret}{after}")
    assert MASK in masked
    assert secret not in masked


def test_rotated_token_is_masked_and_the_one_before_too(tmp_path: Path) -> None:
    file, tokens = tmp_path / "token", tmp_path / "tokens"
    file.write_text("first-token", encoding="utf-8")
    tokens.write_text('[ci]\ntoken = "first-of-ci"\n', encoding="utf-8")
    known = secrets(api={"token_file": file}, gateway={"tokens_file": tokens})
    assert known.mask("first-token first-of-ci") == f"{MASK} {MASK}"
    (tmp_path / "new").write_text("second-token", encoding="utf-8")
    (tmp_path / "new").replace(file)
    tokens.write_text('[ci]\ntoken = "another-of-ci"\n', encoding="utf-8")
    assert known.mask("first-token second-token another-of-ci") == f"{MASK} {MASK} {MASK}"
    file.unlink()
    assert known.mask("first-token second-token") == f"{MASK} {MASK}"


def test_every_spelling_of_tokens_and_passwords_is_masked(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token-of-the-api\n")
    (tmp_path / "tokens").write_text('[ci]\ntoken = "team::<a-pipeline>"\n')
    known = Secrets.of(
        Settings.load(
            redis={"url": "redis://user:pa%2Fssw%20rd-1@h:1/0"},
            broker={"url": "redis://h:1/0?password=query-secret"},
            api={"token_file": tmp_path / "token"},
            gateway={"tokens_file": tmp_path / "tokens", "operator_token": "token-of-operators", "token": "short"},
        ),
        shortest=PAGE_CHARACTERS,
    )
    spelled = (
        "token-of-the-api", "token-of-operators", "query-secret", "pa%2Fssw%20rd-1", "pa/ssw rd-1",
        "team::<a-pipeline>", "team%3A%3A%3Ca-pipeline%3E", "team::&lt;a-pipeline&gt;",
    )  # fmt: skip
    assert [known.mask(each) for each in spelled] == [MASK] * len(spelled)
    assert known.mask("short user") == "short user", "a page has short words of its own, and a user is no secret"


def test_secrets_of_refused_settings_are_those_of_the_variables() -> None:
    known = Secrets.of_variables(
        {
            "RELAY_BROKER_URL": "amqp://u:broker%2Fsecret@h/",
            "RELAY_GATEWAY__TOKEN": "gate",
            "RELAY_GATEWAY__OPERATOR_TOKEN": "console",
            "RELAY_GATEWAY_TOKEN": "pipeline",
            "RELAY_API_TOKEN": "no",
        }
    )
    said = "broker%2Fsecret broker/secret gate console pipeline no"
    assert known.mask(said) == " ".join([MASK] * 5 + ["no"])


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer S3CRET",
        "authorization=S3CRET",
        '{"api_key": "S3CRET"}',
        '{"Token":"S3CRET","a":1}',
        "bearer S3CRET",
        "password: S3CRET",
    ],
)
def test_credentials_are_masked_by_their_form(text: str) -> None:
    assert "S3CRET" not in Secrets([]).mask_credentials(text)
    assert MASK in Secrets([]).mask_credentials(text)


def test_text_without_credentials_is_unchanged() -> None:
    text = "HTTP 422: image.url registry.example.com/team/app is not known"
    assert Secrets(["unrelated"]).mask_credentials(text) == text
    assert Secrets(["S3CRET"]).mask_credentials("it said xxS3CRETxx") == f"it said xx{MASK}xx"


@pytest.mark.parametrize(
    "filling", ["a", "-", "a-", '"', "a ", " ", "token", "token ", "api_", "bearer", "bearer ", "authorization: "]
)
def test_masking_credentials_takes_linear_time(filling: str) -> None:
    started = time.monotonic()
    Secrets(["unrelated"]).mask_credentials(filling * (16 * 1024 // len(filling)))
    assert time.monotonic() - started < 1, "milliseconds; 20 s if each character starts a search"


def test_excerpt_is_masked_before_it_is_cut() -> None:
    secret = "S3CRET-of-the-gateway"
    known = Secrets([secret])
    for before in range(60):
        shown = known.excerpt("x" * before + secret + "y" * 100, 40)
        assert "S3" not in shown
        assert shown.endswith("… (cut)")
    assert "S3" not in known.excerpt(f"{secret} " * 100, 40), "masks are shorter than what they stand for"
    assert known.excerpt("short", 5) == "short"
    assert Secrets([]).excerpt("no secrets", 2) == "no… (cut)"


def test_excerpt_searches_no_more_than_it_shows() -> None:
    started = time.monotonic()
    assert Secrets(["12345678"]).excerpt("x" * 30_000_000, 40) == "x" * 40 + "… (cut)"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"your token the-token is wrong", b"your token *** is wrong"),
        (b"cut off within the-to", b"cut off within ***"),
        (b"cut off within the", b"cut off within the"),
        (b"the-token", b"***"),
        (b"", b""),
    ],
)
def test_answer_is_shown_without_the_token_or_its_beginning(text: bytes, shown: bytes) -> None:
    assert redact_token(text, b"the-token") == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://***@host/0"),
        ("redis://u:p?q@host/0", "redis://***"),
        ("redis://host/0?password=p@ss", "redis://***"),
        ("sqs://KEY:SE?CRET@", "sqs://***"),
        ("redis://u:p@ss/word@host/0", "redis://***@host/0"),
        ("redis://host/0?password=secret", "redis://host/0?***"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock?***"),
        ("amqp://u:p@one;amqp://u:p@two", "amqp://***@two"),
        ("secret@host", "***@host"),
        ("", ""),
    ],
)
def test_url_is_shown_without_its_user_and_query(url: str, shown: str) -> None:
    assert redact_url(url) == shown
