"""Which texts name an image by digest, and what the others are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import InvalidImage
from relay.events.image import MAX_PATH_CHARACTERS, MAX_REFERENCE_CHARACTERS, ImageReference, parse_image

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8
LONGEST_PATH = "a" * MAX_PATH_CHARACTERS


@pytest.mark.parametrize(
    "name",
    [
        "nginx",
        "library/nginx",
        "docker.io/nginx",
        "docker.io/library/nginx",
        "index.docker.io/nginx",
        "index.docker.io/library/nginx",
        "Docker.IO/nginx",
        "INDEX.docker.io/library/nginx",
        "nginx:1.27",
        "docker.io/library/nginx:1.27-alpine_x.Y",
        "docker-pullable://nginx",
        "docker-pullable://docker.io/library/nginx",
        "  nginx",
        "\tdocker-pullable://nginx",
    ],
)
def test_spellings_of_one_repository_are_one_identity(name: str) -> None:
    expected = ImageReference(repository="docker.io/library/nginx", digest=SHA256)

    assert parse_image(f"{name}@{SHA256}") == expected
    assert parse_image(f"{name}@{SHA256}\n").url == f"docker.io/library/nginx@{SHA256}"


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("team/app", "docker.io/team/app"),
        ("a/b/c", "docker.io/a/b/c"),
        ("docker.io/library/a/b", "docker.io/library/a/b"),
        ("registry.example.com/team/app", "registry.example.com/team/app"),
        ("registry.example.com/app", "registry.example.com/app"),
        ("registry.example.com:5000/team/app", "registry.example.com:5000/team/app"),
        ("registry.example.com:5000/team/app:v1", "registry.example.com:5000/team/app"),
        ("Registry.Example.COM/team/app", "registry.example.com/team/app"),
        ("registry:5000/app", "registry:5000/app"),
        ("registry:65535/app", "registry:65535/app"),
        ("localhost/app", "localhost/app"),
        ("LOCALHOST/app", "localhost/app"),
        ("localhost:5000/app", "localhost:5000/app"),
        ("localhost", "docker.io/library/localhost"),
        ("127.0.0.1:5000/app", "127.0.0.1:5000/app"),
        ("[2001:db8::1]:5000/x", "[2001:db8::1]:5000/x"),
        ("[2001:DB8::1]/x", "[2001:db8::1]/x"),
        ("docker.io:443/nginx", "docker.io:443/nginx"),
        ("quay.io/a_b/c__d/e-f--g/h.i", "quay.io/a_b/c__d/e-f--g/h.i"),
        ("xn--n3h.com/app", "xn--n3h.com/app"),
        (f"quay.io/{LONGEST_PATH}", f"quay.io/{LONGEST_PATH}"),
    ],
)
def test_repository_is_fully_qualified_without_tag(name: str, repository: str) -> None:
    assert parse_image(f"{name}@{SHA256}") == ImageReference(repository=repository, digest=SHA256)


@pytest.mark.parametrize("algorithm", ["", "sha256:", "sha512:"])
@pytest.mark.parametrize(
    "value",
    [
        *("", " ", '""', "null", "undefined", "None", "nil", "<nil>", "<no value>", "<none>", "[object Object]"),
        *("$(tasks.build.results.DIGEST)", "${DIGEST}", "$DIGEST", "$env:DIGEST", "{{ .Values.digest }}", "%DIGEST%"),
        *("${{ steps.build.outputs.digest }}", "{{inputs.parameters.digest}}", "#{digest}", "<DIGEST>"),
        *("__DIGEST__", "((digest))", "<+artifact.digest>", "[[ .Digest ]]", "(null)", "~", "-", "N/A", "false"),
    ],
)
def test_unset_digest_is_refused_as_empty(algorithm: str, value: str) -> None:
    for name in ("ghcr.io/acme/api", "nginx:1.27", "ghcr.io/acme/api:v1"):
        with pytest.raises(InvalidImage) as refused:
            parse_image(f"{name}@{algorithm}{value}")
        assert refused.value.reason.startswith("the digest is empty: was the output it comes from set?")
        assert not value.strip() or value[:10] in refused.value.reason


def test_algorithm_alone_is_an_empty_digest() -> None:
    with pytest.raises(
        InvalidImage, match="the digest is empty: was the output it comes from set\\? It reads 'sha256'"
    ):
        parse_image("nginx@sha256")


def test_sha512_is_accepted() -> None:
    assert parse_image(f"nginx@{SHA512}").digest == SHA512


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("docker-pullable://", "is empty"),
        ("nginx", "has no digest"),
        ("registry.example.com:5000/app", "has no digest"),
        ("nginx:1.27", "has a tag but no digest"),
        ("registry.example.com:5000/app:1.27", "has a tag but no digest"),
        (SHA256, "is a digest without a repository"),
        (SHA512, "is a digest without a repository"),
        (SHA256.removeprefix("sha256:"), "is a digest without a repository"),
        (f"docker-pullable://{SHA256}", "is a digest without a repository"),
        (f"@{SHA256}", "names no repository"),
        (f"docker://{SHA256}", "is an image id"),
        (f"docker://nginx@{SHA256}", "starts with the URL scheme 'docker://'"),
        (f"https://registry.example.com/app@{SHA256}", "starts with the URL scheme 'https://'"),
        (f"nginx@{SHA256}@{SHA256}", "more than one '@'"),
        (f"user:secret@registry.example.com/app@{SHA256}", "more than one '@'"),
        ("nginx@md5", "algorithm 'md5'"),
        (f"nginx@{SHA256[:-1]}", "sha256 digest of 63 hex digits, not 64"),
        (f"nginx@{SHA256}0", "sha256 digest of 65 hex digits, not 64"),
        (f"nginx@{SHA512[:-64]}", "sha512 digest of 64 hex digits, not 128"),
        (f"nginx@{SHA256.replace('f', 'F')}", "upper-case hex"),
        (f"nginx@{SHA256.replace('f', 'g')}", "other characters than hex digits"),
        ("nginx@md5:" + "0" * 32, "algorithm 'md5'"),
        (f"nginx@{SHA256.upper()}", "algorithm 'SHA256'"),
        (f"Team/App@{SHA256}", "upper-case letters in its repository path 'Team/App'"),
        (f"quay.io/Team@{SHA256}", "upper-case letters in its repository path 'Team'"),
        (f"ngi nx@{SHA256}", "white space inside"),
        (f"nginx\n@{SHA256}", "white space inside"),
        (f"nginx\u00a0x@{SHA256}", "white space inside"),
        (f"ngi\x00nx@{SHA256}", r"control character ('\x00')"),
        (f"ngi\x7fnx@{SHA256}", r"control character ('\x7f')"),
        (f"nginx\u212a@{SHA256}", r"the character '\u212a'"),
        (f"nginx\ud800@{SHA256}", r"the character '\ud800'"),
        (f"/nginx@{SHA256}", "empty component"),
        (f"team//app@{SHA256}", "empty component"),
        (f"team/@{SHA256}", "empty component"),
        (f"quay.io/@{SHA256}", "empty component"),
        (f"docker.io/@{SHA256}", "empty component"),
        (f"quay.io/a..b@{SHA256}", "malformed repository path 'a..b'"),
        (f"quay.io/-a@{SHA256}", "malformed repository path '-a'"),
        (f"quay.io/a___b@{SHA256}", "malformed repository path 'a___b'"),
        (f"quay.io/a$b@{SHA256}", "malformed repository path 'a$b'"),
        (f"quay.io/a{LONGEST_PATH}@{SHA256}", "path of 256 characters, more than 255"),
        (f"{LONGEST_PATH}@{SHA256}", "path of 263 characters, more than 255"),
        (f"nginx:@{SHA256}", "malformed tag ''"),
        (f"nginx:-x@{SHA256}", "malformed tag '-x'"),
        (f"nginx:{'x' * 129}@{SHA256}", "malformed tag 'xxx"),
        (f"quay.io:0/app@{SHA256}", "malformed registry host or port 'quay.io:0'"),
        (f"quay.io:080/app@{SHA256}", "malformed registry host or port"),
        (f"quay.io:/app@{SHA256}", "malformed registry host or port"),
        (f"quay.io:http/app@{SHA256}", "malformed registry host or port"),
        (f"quay.io:70000/app@{SHA256}", "the port 70000, and the highest is 65535"),
        (f"quay..io/app@{SHA256}", "malformed registry host or port"),
        (f"-quay.io/app@{SHA256}", "malformed registry host or port"),
        (f":5000/app@{SHA256}", "malformed registry host or port"),
        (f"../app@{SHA256}", "malformed registry host or port '..'"),
        (f"2001:db8::1/app@{SHA256}", "malformed registry host or port"),
        (f"[2001:db8::1%eth0]/app@{SHA256}", "malformed registry host or port"),
        (f"[:::]/app@{SHA256}", "malformed IPv6 registry host '[:::]'"),
        (f"{'a' * 250}.com/app@{SHA256}", "registry host of 254 characters"),
        ("a" * (MAX_REFERENCE_CHARACTERS + 1), "has 1025 characters, more than the 1024 allowed"),
    ],
)
def test_refusal_names_the_fault(text: str, reason: str) -> None:
    with pytest.raises(InvalidImage) as refused:
        parse_image(text)

    assert refused.value.field == "image.url"
    assert reason in refused.value.reason
    assert refused.value.reason.isprintable()
    assert len(refused.value.reason) < 250


def test_refusal_of_a_tag_says_what_to_write() -> None:
    with pytest.raises(InvalidImage, match=r"write registry.example.com/team/app@sha256:<64 hex digits>"):
        parse_image("nginx:latest")


def test_user_name_and_password_are_not_repeated() -> None:
    with pytest.raises(InvalidImage) as refused:
        parse_image(f"user:secret@registry.example.com/app@{SHA256}")

    assert "secret" not in str(refused.value)


components = st.from_regex(r"[a-z0-9]{1,6}(?:(?:[._]|__|-{1,2})[a-z0-9]{1,6}){0,2}", fullmatch=True)
paths = st.lists(components, min_size=1, max_size=4).map("/".join)
hosts = st.sampled_from(
    ["docker.io/", "index.docker.io/", "Quay.IO/", "localhost/", "registry:5000/", "[2001:DB8::1]:1/"]
)
# Without a host only a name of one component is a path for certain: the first of several may be a host.
image_names = st.one_of(components, st.builds("{}{}".format, hosts, paths))
tags = st.from_regex(r"|:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True)
digests = st.one_of(
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    st.from_regex(r"sha512:[0-9a-f]{128}", fullmatch=True),
)
references = st.builds("{}{}@{}".format, image_names, tags, digests)


@given(references)
def test_canonical_form_is_a_fixed_point(text: str) -> None:
    reference = parse_image(text)

    assert parse_image(reference.url) == reference
    assert parse_image(reference.url).url == reference.url


@given(st.one_of(st.text(), st.text("aA0.:/@-_[]\n"), st.text("aA0.:/@-_[]").map(lambda name: f"{name}@{SHA256}")))
def test_any_text_is_read_or_refused_on_one_line(text: str) -> None:
    try:
        reference = parse_image(text)
    except InvalidImage as refused:
        assert str(refused).isprintable()  # noqa: PT017 - both outcomes are right, and each has its promise
    else:
        assert parse_image(reference.url) == reference
        assert " " not in reference.repository
        assert "/" in reference.repository
