"""Whose token is it, and what may it report for; what is wrong with a file of tokens."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from relay.errors import ConfigurationError
from relay.gateway.auth import Principal, Rejection, Tokens, parse_tokens

SHIPPED = Path(__file__).parents[2] / "config" / "gateway-tokens.toml"


def name_of(tokens: Tokens, token: str) -> str | Rejection:
    found = tokens.identify(f"Bearer {token}")
    return found.name if isinstance(found, Principal) else found


def test_each_token_has_its_principal() -> None:
    hashed = sha256(b"of-two").hexdigest()
    tokens = Tokens.single("of-all") + parse_tokens(f'[one]\ntoken = "of-one"\n[two]\ntoken_sha256 = "{hashed}"')
    assert name_of(tokens, "of-all") == "gateway.token"
    assert name_of(tokens, "of-one") == "one"
    assert name_of(tokens, "of-two") == "two"
    assert name_of(tokens, hashed) is Rejection.WRONG_TOKEN


@pytest.mark.parametrize(
    ("environments", "environment", "may"),
    [
        (("*",), "production", True),
        (("payments-*", "shared"), "payments-eu", True),
        (("payments-*", "shared"), "shared", True),
        (("payments-*", "shared"), "shared-2", False),
        (("payments-*",), "Payments-eu", False),
        (("prod-[ab]",), "prod-b", True),
    ],
)
def test_environments_are_globs(environments: tuple[str, ...], environment: str, *, may: bool) -> None:
    assert Principal(name="x", environments=environments).may_report_for(environment) is may


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no token"),
        ("[a", "not valid TOML"),
        ("a = 1", "a: "),
        ("[a]", "either token or token_sha256"),
        ('[a]\ntoken = ""', "either token or token_sha256"),
        (f'[a]\ntoken = "canary"\ntoken_sha256 = "{"0" * 64}"', "either token or token_sha256"),
        ('[a]\ntoken_sha256 = "canary"', "a.token_sha256"),
        ('[a]\ntoken = "canary"\nenvironments = []', "a.environments"),
        ('[a]\ntoken = "canary"\nenvironment = ["x"]', "a.environment"),
        ('[a]\ntoken = "canary', "not valid TOML"),
        ("[a]\ntoken = canary", "not valid TOML"),
    ],
)
def test_a_files_fault_is_named_without_repeating_a_token(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_tokens(text)
    assert says in str(refused.value)
    assert "canary" not in str(refused.value)


def test_shipped_file_does_what_its_comments_say() -> None:
    tokens = parse_tokens(SHIPPED.read_text())
    assert name_of(tokens, "example-token-of-the-platform-team") == "platform-team"
    assert name_of(tokens, "example-token-of-payments") == "payments-pipeline"
