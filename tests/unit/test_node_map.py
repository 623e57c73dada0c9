"""The node map's value: read as it was written, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.events.platform import Platform, parse_platform
from relay.queue.nodes import MAX_BYTES, MAX_NODES, NodeMap, decode, encode

platforms = st.sampled_from(["linux/amd64", "linux/arm64", "linux/arm/v7", "windows/amd64"]).map(parse_platform)


@given(st.dictionaries(st.text(min_size=1, max_size=63), platforms))
def test_a_map_is_read_as_it_was_written(written: dict[str, Platform]) -> None:
    found = decode(encode(written))
    assert found.is_alive
    assert found.platforms == written
    assert found.version == decode(encode(dict(reversed(written.items())))).version


def test_another_map_has_another_version() -> None:
    one, other = (encode({"n1": parse_platform(text)}) for text in ("linux/amd64", "linux/arm64"))
    assert decode(one).version != decode(other).version


def test_a_node_whose_platform_is_not_known_whole_is_not_in_it() -> None:
    assert decode(encode({"n1": Platform(os="linux"), "n2": Platform()})).platforms == {}


def test_the_largest_map_fits() -> None:
    names = {f"{'n' * 57}{number:06}": parse_platform("linux/amd64") for number in range(MAX_NODES)}
    assert len(encode(names)) < MAX_BYTES


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"7", b'{"linux": ["n1"]}', b'{"linux/amd64": 7}', b'{"a": null}']
)
def test_what_has_another_shape_is_no_map(content: bytes) -> None:
    assert decode(b"0" * 32 + content) == NodeMap()
    assert decode(content) == NodeMap()
