"""One spelling for each platform, as containerd has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.errors import InvalidEvent
from relay.events.platform import MAX_COMPONENT_CHARACTERS, Platform, normalise, parse_platform


# The rows of containerd's normalizeArch, and what stays as it is.
@pytest.mark.parametrize(
    ("architecture", "variant", "expected"),
    [
        ("x86_64", None, ("amd64", None)),
        ("x86-64", None, ("amd64", None)),
        ("amd64", None, ("amd64", None)),
        ("AMD64", "V1", ("amd64", None)),
        ("amd64", "v1", ("amd64", None)),
        ("x86_64", "v1", ("amd64", None)),
        ("amd64", "v3", ("amd64", "v3")),
        ("i386", None, ("386", None)),
        ("i386", "sse2", ("386", None)),
        ("386", "softfloat", ("386", "softfloat")),
        ("aarch64", None, ("arm64", None)),
        ("arm64", "v8", ("arm64", None)),
        ("arm64", "8", ("arm64", None)),
        ("aarch64", "V8", ("arm64", None)),
        ("arm64", "v9", ("arm64", "v9")),
        ("armhf", None, ("arm", "v7")),
        ("armhf", "v6", ("arm", "v7")),
        ("armel", None, ("arm", "v6")),
        ("armel", "v5", ("arm", "v6")),
        ("arm", None, ("arm", "v7")),
        ("arm", "", ("arm", "v7")),
        ("arm", "5", ("arm", "v5")),
        ("arm", "6", ("arm", "v6")),
        ("arm", "7", ("arm", "v7")),
        ("arm", "8", ("arm", "v8")),
        ("arm", "v7", ("arm", "v7")),
        ("s390x", None, ("s390x", None)),
        ("Unheard-Of_1.0", "X", ("unheard-of_1.0", "x")),
        (None, "V7", (None, "v7")),
        ("", " ", (None, None)),
    ],
)
def test_architecture_and_variant_have_one_spelling(
    architecture: str | None, variant: str | None, expected: tuple[str | None, str | None]
) -> None:
    assert normalise(None, architecture, variant)[1:] == expected


@pytest.mark.parametrize(
    ("os", "expected"),
    [
        ("Linux", "linux"),
        ("macOS", "darwin"),
        ("darwin", "darwin"),
        (" windows ", "windows"),
        ("", None),
        (None, None),
    ],
)
def test_operating_system_has_one_spelling(os: str | None, expected: str | None) -> None:
    assert normalise(os)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/X86_64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("macos/aarch64", "darwin/arm64"),
        (" linux/amd64\n", "linux/amd64"),
    ],
)
def test_specifier_is_read_and_written_in_one_spelling(text: str, expected: str) -> None:
    assert str(parse_platform(text)) == expected
    assert parse_platform(expected) == parse_platform(text)


@pytest.mark.parametrize("text", ["", "linux", "arm64", "linux/", "/amd64", "linux//v8", "linux/ /v8", "a/b/c/d"])
def test_specifier_needs_operating_system_and_architecture(text: str) -> None:
    with pytest.raises(InvalidEvent, match=r"^platform: must be os/architecture"):
        parse_platform(text)


@pytest.mark.parametrize("component", ["lin ux", "a\nb", "é", "a+b", "windows(10.0)", "*", "\x00"])
@pytest.mark.parametrize("field", ["os", "architecture", "variant"])
def test_component_has_containerds_characters_only(field: str, component: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        normalise(**{field: component})

    assert refused.value.field == f"platform.{field}"
    assert str(refused.value).isprintable()


def test_component_has_a_bound() -> None:
    normalise("a" * MAX_COMPONENT_CHARACTERS)

    with pytest.raises(InvalidEvent, match=r"platform.os: has 65 characters, more than 64"):
        normalise("a" * (MAX_COMPONENT_CHARACTERS + 1))


def test_platform_is_canonical_however_it_is_made() -> None:
    made = Platform(os="Linux", architecture="aarch64", variant="v8")

    assert made == Platform.model_validate({"os": "linux", "architecture": "arm64"})
    assert hash(made) == hash(parse_platform("linux/arm64"))


@pytest.mark.parametrize("part", [5, True, b"linux", ["linux"]])
def test_platform_parts_are_strings(part: object) -> None:
    with pytest.raises(ValidationError):
        Platform.model_validate({"os": part, "architecture": "AMD64"})


def test_incomplete_platform_shows_what_is_missing() -> None:
    assert str(Platform(architecture="arm64")) == "?/arm64/?"
    assert not Platform(architecture="arm64").is_complete
    assert not Platform(os="linux").is_complete


components = st.one_of(
    st.sampled_from(
        ["arm", "armhf", "armel", "ARM64", "aarch64", "x86_64", "amd64", "i386", "macOS", "v1", "v8", "7"]
    ),
    st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True),
)


@given(components, components, st.one_of(st.none(), components))
def test_canonical_form_is_a_fixed_point(os: str, architecture: str, variant: str | None) -> None:
    once = normalise(os, architecture, variant)

    assert normalise(*once) == once
    assert parse_platform(str(Platform(os=os, architecture=architecture, variant=variant))) == Platform(
        os=once[0], architecture=once[1], variant=once[2]
    )


@given(st.text(), st.text(), st.text())
def test_any_text_is_normalised_or_refused_on_one_line(os: str, architecture: str, variant: str) -> None:
    try:
        parts = normalise(os, architecture, variant)
    except InvalidEvent as refused:
        assert str(refused).isprintable()  # noqa: PT017 - both outcomes are right
    else:
        assert normalise(*parts) == parts
