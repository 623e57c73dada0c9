"""Every review is allowed, whatever it is; some report."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pods import NAMING, digest_of, load, naming

from relay.kubernetes.admission import Review, allow, read_review

UID = "705ab4f5-6393-11e8-b7cc-42010a800002"


def reviewed(review: Any) -> Review:
    return read_review(json.dumps(review).encode(), NAMING)


def reported(review: Review) -> dict[str | None, str]:
    return {event.image.name: event.image.url for event in review.events}


def skipped(review: Review) -> dict[str, int]:
    return {str(reason): count for reason, count in review.skipped.items()}


def answer(uid: str, version: str = "admission.k8s.io/v1") -> dict[str, Any]:
    return {"apiVersion": version, "kind": "AdmissionReview", "response": {"uid": uid, "allowed": True}}


def changed(review: Any, **request: Any) -> Any:
    return {**review, "request": {**review["request"], **request}}


# What is reported


def test_a_pod_that_is_created_reports_what_it_pins() -> None:
    review = reviewed(load("review-create"))

    assert review.response == answer(UID)
    assert reported(review) == {"shop/web/nginx": f"registry.example.com/shop/web@{digest_of('web-5.2')}"}
    assert skipped(review) == {"not_pinned": 1}
    assert [event.time for event in review.events] == [None]


def test_a_pod_that_begins_to_run_reports_what_runs() -> None:
    review = reviewed(load("review-status"))

    assert reported(review) == {
        "payments/payments-api/api": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/payments/api@"
        + digest_of("payments-2.14.0")
    }
    assert not review.skipped


def test_a_status_that_says_the_same_again_reports_nothing() -> None:
    status = load("review-status")
    review = reviewed(changed(status, oldObject=status["request"]["object"]))

    assert not review.events
    assert skipped(review) == {"unchanged": 1}


def test_a_debugger_reports_what_it_pins_and_only_that() -> None:
    review = reviewed(load("review-ephemeral"))

    assert reported(review) == {
        "shop/orders/debugger-7kq9z": f"docker.io/library/busybox@{digest_of('busybox-1.37')}"
    }
    assert skipped(review) == {"unchanged": 4}


def test_an_image_that_is_changed_in_place_reports_its_pin() -> None:
    request = load("review-create")["request"]
    old = copy.deepcopy(request["object"])
    old["spec"]["containers"][0]["image"] = "registry.example.com/shop/web:5.1"
    review = reviewed({"request": {**request, "operation": "UPDATE", "oldObject": old}})

    assert list(reported(review)) == ["shop/web/nginx"]
    assert skipped(review) == {"unchanged": 1}


def test_a_bare_pod_that_has_no_name_yet_is_called_as_it_will_begin() -> None:
    create = load("review-create")
    del create["request"]["object"]["metadata"]["ownerReferences"]
    assert list(reported(reviewed(create))) == ["shop/web-6d4cf56db6/nginx"]


def test_the_request_names_a_pod_that_does_not_say_where_and_what_it_is() -> None:
    create = load("review-create")
    create["request"]["object"]["metadata"] = {}
    assert list(reported(reviewed(changed(create, name="web", namespace="other")))) == ["other/web/nginx"]


def test_a_template_that_asks_for_a_label_skips_it_for_a_review_has_none() -> None:
    called = naming(environment_template="{namespace_labels[stage]}")
    review = read_review(json.dumps(load("review-status")).encode(), called)
    assert (review.events, skipped(review)) == ((), {"label_missing": 1})


# What is not


@pytest.mark.parametrize(
    ("review", "reason"),
    [
        (load("review-dry-run"), "dry_run"),
        (load("review-delete"), "other_operation"),
        (changed(load("review-create"), subResource="binding"), "other_operation"),
        (changed(load("review-create"), operation="CONNECT"), "other_operation"),
        (changed(load("review-status"), operation="CREATE"), "other_operation"),
        (changed(load("review-create"), resource={"group": "", "version": "v1", "resource": "nodes"}), "not_a_pod"),
        (
            changed(load("review-create"), resource={"group": "metrics.k8s.io", "version": "v1", "resource": "pods"}),
            "not_a_pod",
        ),
        (changed(load("review-create"), namespace="", object={}), "not_a_pod"),
        ({"request": {}}, "not_a_review"),
        ({"kind": "Pod"}, "not_a_review"),
        ([], "not_a_review"),
        (None, "not_a_review"),
    ],
)
def test_the_rest_is_allowed_counted_and_not_reported(review: Any, reason: str) -> None:
    found = reviewed(review)

    assert not found.events
    assert skipped(found) == {reason: 1}
    assert found.response["response"]["allowed"] is True


# How it is answered


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
def test_a_review_is_answered_in_its_version(version: str) -> None:
    assert reviewed({**load("review-create"), "apiVersion": version}).response == answer(UID, version)


@pytest.mark.parametrize("version", ["admission.k8s.io/v7", "", None, 1, {}])
def test_a_version_that_is_unknown_is_answered_in_the_first(version: Any) -> None:
    assert reviewed({**load("review-create"), "apiVersion": version}).response == answer(UID)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"\xff", b"[" * 100_000, b'{"request": {"uid": "\\ud800"}}', b"1" * 5000]
)
def test_what_cannot_be_read_is_allowed_without_a_uid(body: bytes) -> None:
    review = read_review(body, NAMING)

    assert review.response == allow(body) == answer("")
    assert skipped(review) == {"not_a_review": 1}


def test_the_beginning_of_a_review_is_enough_to_allow_it() -> None:
    body = json.dumps(load("review-create"), ensure_ascii=False).encode()
    known = body.index(UID.encode()) + len(UID) + 1

    assert all(allow(body[:size]) == answer("") for size in range(known))
    assert all(allow(body[:size]) == answer(UID) for size in range(known, len(body) + 1))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(
    ["object", "oldObject", "metadata", "spec", "status", "name", "namespace", "containers", "image", "dryRun"]
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))


@given(body=st.binary())
def test_any_bytes_are_allowed(body: bytes) -> None:
    assert read_review(body, NAMING).response["response"]["allowed"] is True


@given(
    uid=st.text(),
    operation=st.sampled_from(["CREATE", "UPDATE"]),
    subresource=st.sampled_from(["", "status", "ephemeralcontainers"]),
    rest=st.dictionaries(KEYS, JSON, max_size=4),
)
def test_any_request_is_allowed_with_its_uid(
    uid: str, operation: str, subresource: str, rest: dict[str, Any]
) -> None:
    pods = {"group": "", "version": "v1", "resource": "pods"}
    request = rest | {"uid": uid, "operation": operation, "subResource": subresource, "resource": pods}

    assert reviewed({"request": request}).response == answer(uid)


@given(uid=st.text(), review=JSON)
def test_any_document_is_allowed_with_its_uid_if_it_has_one(uid: str, review: Any) -> None:
    assert reviewed(review).response == answer("")
    assert reviewed({"request": {"uid": uid, "object": review}, "kind": review}).response == answer(uid)
