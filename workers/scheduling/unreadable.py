"""Messages on the broker that are not tasks of the relay: their faults, and the report that replaces each.

Celery logs such a message and drops it, or the worker exits. Here it is replaced by a call of `relay.report` that
says what is wrong. Intake makes a dead letter `invalid` of it, with the raw message, and counts it. Only JSON is
decoded.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING, Any

from relay.events.event import MAX_ID_BYTES
from workers.scheduling.wakeups import REPORT

if TYPE_CHECKING:
    from collections.abc import Callable, Container

#: Characters of a raw message that are kept; the dead letter has the length of the whole.
KEPT_CHARACTERS = 16_384

#: Characters of an error's text that are kept: some repeat the undecodable message.
_ERROR_CHARACTERS = 200

#: The parts of a call in the second version of Celery's message protocol: arguments, keyword arguments, options.
_PARTS = 3


class _Fault(Exception):  # noqa: N818 - a fault of a message
    """A fault of a message."""


def fault_of_item(item: bytes, decode_body: Callable[[str, Any], Any]) -> str | None:
    """Return why an item of a broker's list is not a message of kombu's, None if it is one."""
    try:
        _check_item(item, decode_body)
    except _Fault as fault:
        return str(fault)
    return None


def fault_of(message: Any, tasks: Container[str]) -> str | None:
    """Return why kombu's message is not a call of one of these tasks, None if it is one."""
    try:
        _check_message(message, tasks)
    except _Fault as fault:
        return str(fault)
    return None


def _check_item(item: bytes, decode_body: Callable[[str, Any], Any]) -> None:
    try:
        payload = json.loads(item)
    except (ValueError, RecursionError) as error:
        raise _Fault(f"the message is not JSON: {_describe(error)}") from None
    _require(isinstance(payload, dict), "the message is not a JSON object")
    properties, body = payload.get("properties"), payload.get("body")
    _require(isinstance(properties, dict), "the message has no properties")
    tag, where = properties.get("delivery_tag"), properties.get("delivery_info")
    _require(isinstance(tag, str) and bool(tag), "the message has no properties.delivery_tag")
    _require(
        isinstance(where, dict) and all(isinstance(where.get(name), str) for name in ("exchange", "routing_key")),
        "the message has no properties.delivery_info with exchange and routing_key",
    )
    _require(isinstance(payload.get("headers") or {}, dict), "the message's headers are not an object")
    _require(isinstance(body, str), "the message's body is not a string")
    try:
        decode_body(body, properties.get("body_encoding"))
    except Exception as error:  # noqa: BLE001 - each codec raises errors of its own
        raise _Fault(f"the message's body cannot be decoded: {_describe(error)}") from None


def _check_message(message: Any, tasks: Container[str]) -> None:
    if message.errors:
        raise _Fault(f"the message's body cannot be decompressed: {_describe(message.errors[0][1])}")
    try:
        payload = message.payload
    except Exception as error:  # noqa: BLE001 - each serializer raises errors of its own
        raise _Fault(f"the message's body cannot be read ({message.content_type}): {_describe(error)}") from None
    call = _call_of(message.headers, payload)
    task, task_id, options, limits = call["task"], call.get("id"), call.get("options"), call.get("timelimit")
    is_known = isinstance(task, str) and task in tasks
    _require(is_known, f"there is no task {str(task)[:_ERROR_CHARACTERS]!r} here")
    _require(isinstance(task_id, str) and bool(task_id), "the message has no task id")
    _require(
        isinstance(call.get("args", []), (list, tuple)) and isinstance(call.get("kwargs", {}), dict),
        "the task's arguments are not a list and an object",
    )
    _require("self" not in call.get("kwargs", {}), "no argument of a task can have the name `self`")
    _require(options is None or isinstance(options, dict), "the task's options are not an object")
    # Celery checks this one only after it has reserved a place in the pool.
    _require(limits is None or _are_limits(limits), "the message's timelimit is not two numbers")


def _are_limits(limits: Any) -> bool:
    numbers = isinstance(limits, (list, tuple)) and [isinstance(each, int | float | None) for each in limits]
    return numbers == [True, True]


def _require(condition: bool, fault: str) -> None:  # noqa: FBT001 - reads like an assertion
    if not condition:
        raise _Fault(fault)


def _call_of(headers: dict[str, Any], payload: Any) -> dict[str, Any]:
    """Return the call in a message, of either version of Celery's protocol."""
    if "task" in headers and isinstance(payload, (list, tuple)) and len(payload) == _PARTS:
        return {**headers, **dict(zip(("args", "kwargs", "options"), payload, strict=True))}
    if not isinstance(payload, dict) or not {"args", "task"} <= {*payload, *headers}:
        raise _Fault("the message is no task of Celery's")
    return {**payload, **headers}


def replace(message: Any, why: str) -> None:
    """Turn kombu's message into a call of `relay.report` with its fault; its acknowledgement is unchanged."""
    task_id = message.headers.get("id")
    whole = {
        "body": _text(message.body),
        "content-type": message.content_type,
        "content-encoding": message.content_encoding,
        "headers": message.headers,
        "properties": message.properties,
    }
    fits = isinstance(task_id, str) and task_id.isprintable() and 0 < len(task_id.encode()) <= MAX_ID_BYTES
    message.headers = _headers(task_id if fits else str(uuid.uuid4()))
    message.body = _body(json.dumps(whole, default=str), why).encode()
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message.properties = {"correlation_id": message.headers["id"]}
    message.errors = []
    message._decoded_cache = None  # noqa: SLF001 - it caches the original call


def replacement(item: bytes, queue: str, why: str) -> bytes:
    """Return a message of kombu's that replaces an item of a broker's list."""
    task_id = str(uuid.uuid4())
    properties = {
        "correlation_id": task_id,
        "delivery_tag": task_id,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "body_encoding": "base64",
    }
    message = {
        "body": base64.b64encode(_body(_text(item), why).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": _headers(task_id),
        "properties": properties,
    }
    return json.dumps(message).encode()


def _headers(task_id: str) -> dict[str, Any]:
    return {"lang": "py", "task": REPORT, "id": task_id, "root_id": task_id}


def _body(raw: str, why: str) -> str:
    if len(raw) > KEPT_CHARACTERS:
        why = f"{why}; the first {KEPT_CHARACTERS} of {len(raw)} characters are kept"
    return json.dumps([[raw[:KEPT_CHARACTERS]], {"unreadable": why}, {}])


def _text(raw: Any) -> str:
    return raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else str(raw)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:_ERROR_CHARACTERS]}"
