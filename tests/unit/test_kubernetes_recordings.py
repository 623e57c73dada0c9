"""Lines of a watch as an API server sent them (v1.36.3), and errors with any code in their place."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from pods import load

from relay.errors import ClusterUnavailable
from relay.kubernetes.cluster import _change
from relay.kubernetes.retry_policy import Step, decide_step


def error_of(line: str) -> ClusterUnavailable:
    with pytest.raises(ClusterUnavailable) as raised:
        _change(line.encode())
    return raised.value


@pytest.mark.parametrize(
    ("name", "status", "step", "said"),
    [
        ("watch-too-old", 410, Step.LIST, "too old resource version: 360 (386)"),
        ("watch-list", 500, Step.RESUME, "RequestWatchProgress is disabled"),
    ],
)
def test_an_error_in_a_watch_is_told_with_its_code(name: str, status: int, step: Step, said: str) -> None:
    recorded = load(f"recorded-{name}")
    assert recorded["status"] == 200
    [line] = recorded["lines"]
    error = error_of(line)
    assert error.status == status
    assert said in str(error)
    following = decide_step(error, is_watching=True, has_listed=True, failures=1, random=Random(1))
    assert following.step is step


def test_an_error_of_any_code_ends_the_watch_and_never_the_watcher() -> None:
    [line] = load("recorded-watch-list")["lines"]
    change = json.loads(line)
    for code in (*range(200, 600), 0, -1, 10**30, None, "410", True, [], {}):
        change["object"]["code"] = code
        error = error_of(json.dumps(change))
        assert error.status == (code if type(code) is int else None)
        following = decide_step(error, is_watching=True, has_listed=True, failures=1, random=Random(1))
        assert following.step is (Step.LIST if error.status == 410 else Step.RESUME)


@pytest.mark.parametrize("status", [None, "x", [], {}, {"message": 7}, {"message": None, "reason": {}}])
def test_an_error_of_another_shape_is_one_too(status: Any) -> None:
    assert error_of(json.dumps({"type": "ERROR", "object": status})).status is None
