"""The description of the gateway in OpenAPI 3.1, served at /openapi.json; a test checks the gateway against it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from relay.events.event import MAX_ID_BYTES, MAX_NAME_BYTES
from relay.gateway.report_parsing import MAX_MANY_EVENTS
from relay.gateway.webhook import EVENT_ID_HEADER, MAX_ORIGIN_CHARACTERS

_DIGEST = "0123456789abcdef" * 4


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _text(description: str, max_bytes: int | None = None) -> dict[str, Any]:
    """Return the schema of an optional text; null and white space count as missing."""
    bound = {} if max_bytes is None else {"description": f"{description} At most {max_bytes} bytes in UTF-8."}
    return {"type": ["string", "null"], "description": description, **bound}


def _part(properties: dict[str, Any], description: str) -> dict[str, Any]:
    """Return the schema of an optional part of an event; null and the empty text count as missing."""
    whole = {"type": "object", "additionalProperties": False, "properties": properties}
    return {"description": description, "anyOf": [whole, {"type": "null"}, {"const": ""}]}


_ENVELOPE = {
    "id": _text("Idempotency key: reported again under it, the event counts once.", MAX_ID_BYTES),
    "source": _text("The cluster or pipeline that reports.", MAX_NAME_BYTES),
    "time": _text("When the deployment happened, in RFC 3339."),
}

_EVENT = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {
            "type": "object",
            "required": ["url"],
            "additionalProperties": False,
            "properties": {
                "url": {
                    "type": "string",
                    "description": "An image reference by digest.",
                    "examples": [f"ghcr.io/acme/api@sha256:{_DIGEST}"],
                },
                "name": _text("Distinguishes containers of one repository.", MAX_NAME_BYTES),
            },
        },
        "environment": _part({"name": _text("Where it runs now.", MAX_NAME_BYTES)}, "The environment."),
        "platform": _part(
            {"os": _text("linux, …"), "architecture": _text("amd64, arm64, …"), "variant": _text("v7, …")},
            "A missing part is the environment's default.",
        ),
        **_ENVELOPE,
    },
}

_ATTRIBUTE = {"type": "string", "minLength": 1}

#: Other attributes are allowed.
_CLOUD_EVENT = {
    "type": "object",
    "required": ["specversion", "type", "source", "id"],
    "properties": {
        "specversion": {"const": "1.0"},
        "type": {**_ATTRIBUTE, "description": "dev.cdevents.service.… for a CDEvent; else data is an Event."},
        "source": {**_ATTRIBUTE, "description": f"Who reports. At most {MAX_NAME_BYTES} bytes in UTF-8."},
        "id": {**_ATTRIBUTE, "description": "With the source, the idempotency key."},
        "time": _ENVELOPE["time"],
        "datacontenttype": {"type": ["string", "null"], "description": "A type of JSON."},
        "data": {"anyOf": [_ref("Event"), _ref("CDEvent"), {"type": "null"}]},
        "data_base64": {"type": ["string", "null"], "description": "The data as JSON text in base64."},
    },
}

#: Other attributes are allowed.
_CDEVENT = {
    "type": "object",
    "required": ["context"],
    "properties": {
        "context": {
            "type": "object",
            "required": ["type", "source", "id"],
            "properties": {
                "type": {
                    "type": "string",
                    "pattern": r"^dev\.cdevents\.service\."
                    r"(deployed|upgraded|rolledback|published|removed)\.0\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$",
                },
                "source": _ATTRIBUTE,
                "id": _ATTRIBUTE,
            },
        }
    },
}

_FAULT = {
    "type": "object",
    "required": ["index", "field", "reason"],
    "properties": {
        "index": {"type": "integer", "minimum": 0},
        "field": {"type": "string"},
        "reason": {"type": "string"},
    },
}

#: The body of a 202, for one event or for many.
_ACCEPTED = {
    "anyOf": [
        {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        {
            "type": "object",
            "required": ["ids"],
            "properties": {
                "ids": {"type": "array", "items": {"type": ["string", "null"]}},
                "errors": {"type": "array", "items": _ref("Fault")},
            },
        },
    ]
}

_ERROR = {
    "type": "object",
    "required": ["error", "field"],
    "properties": {
        "error": {"type": "string", "description": "The reason."},
        "field": {"type": "string", "description": "The event's field at fault, if any."},
        "ids": {"type": "array", "items": {"type": ["string", "null"]}},
        "errors": {"type": "array", "items": _ref("Fault")},
    },
}

_RECEIPT = {
    "type": "object",
    "required": ["id", "status", "since"],
    "properties": {
        "id": {"type": "string"},
        "status": {"enum": ["queued", "delivered", "duplicate", "stale", "superseded", "dead"]},
        "since": {"type": "string", "format": "date-time"},
        "reason": {
            "type": "string",
            "description": "Of a dead letter, its reason; of a duplicate, the id of the event that it repeats; `id` "
            "if it is superseded because its id was reported before, and another digest since.",
        },
        "detail": {
            "type": "string",
            "description": "The response of the destination, or the error of intake; of a duplicate, whether the "
            "event that it repeats is `delivered` or `waiting`; the digest that was accepted since.",
        },
    },
}


_ADMISSION_REVIEW = {
    "type": "object",
    "required": ["apiVersion", "kind", "response"],
    "properties": {
        "apiVersion": {"enum": ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"]},
        "kind": {"const": "AdmissionReview"},
        "response": {
            "type": "object",
            "required": ["uid", "allowed"],
            "properties": {"uid": {"type": "string"}, "allowed": {"const": True}},
        },
    },
}


def _refusal(description: str, *, later: bool = False) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description, "content": _json(_ref("Error"))}
    if later:
        seconds = {"type": "string", "pattern": "^[0-9]+$"}
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": seconds, "required": True}}
    return response


_REFUSALS = {
    "401": _refusal("A bearer token is missing."),
    "403": _refusal("The token is wrong, or not for that environment; or a page of another site sent it."),
    "503": _refusal("Redis is unavailable; report again with the same id.", later=True),
}


#: The places of a report's token.
_SENDERS: list[dict[str, list[str]]] = [{"token": []}, {"tokenHeader": []}, {"tokenQuery": []}]


def _report(name: str) -> dict[str, Any]:
    """Return the description for one of the two paths."""
    headers = [
        {"name": "ce-id", "in": "header", "schema": {"type": "string"}, "description": "The event's id."},
        {"name": "ce-source", "in": "header", "schema": {"type": "string"}, "description": "Who reports."},
        {"name": "ce-time", "in": "header", "schema": {"type": "string"}, "description": "When it was deployed."},
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "The event's id, if there is no ce-id. Of many, each gets it with `:` and its index.",
        },
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "description": "`reply`: 202 has no body, as for a CloudEvent, whose sender may take one for a reply.",
        },
    ]
    no_body = {"schema": {"type": "string"}, "description": "The event's id, percent-encoded, if there is no body."}
    many = {"type": "array", "items": _ref("Event"), "description": f"At most {MAX_MANY_EVENTS}, else 413."}
    return {
        "operationId": name,
        "summary": "Report deployment events.",
        "description": "Answers once Redis has them. The deployment API's own request, so that a client only needs "
        "another URL and token.",
        "parameters": headers,
        "security": _SENDERS,
        "requestBody": {
            "required": True,
            "content": {
                **_json({"anyOf": [_ref("Event"), many]}),
                "application/x-ndjson": {"schema": {"type": "string", "description": "An event a line."}},
                "application/cloudevents+json": {"schema": _ref("CloudEvent")},
                "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _ref("CloudEvent")}},
                "application/cdevents+json": {"schema": _ref("CDEvent")},
            },
        },
        "responses": {
            "202": {
                # No `content`: it would promise a body.
                "description": "Redis has the events with an id. The body is JSON, the schema `Accepted`; a "
                "CloudEvent, or `Prefer: reply`, is answered without one.",
                "headers": {EVENT_ID_HEADER: no_body},
            },
            "400": _refusal("The body is not JSON, or not as its Content-Encoding says."),
            "408": _refusal("The body did not arrive in time."),
            "413": _refusal("The body is too large."),
            "415": _refusal("There is no content type, or it or the Content-Encoding is not accepted."),
            "421": _refusal("On loopback without a token, the host is none of this machine's."),
            "422": _refusal("No event is valid; `field` names the first fault."),
            "429": _refusal("The queue is full.", later=True),
            **_REFUSALS,
        },
    }


def _review(name: str) -> dict[str, Any]:
    """Return the description for one of the two paths."""
    return {
        "operationId": name,
        "summary": "Report what Kubernetes admits.",
        "description": "Always allows, within 200 ms, whatever the API server sends. `gateway.admission` sets which "
        "reviews are reported.",
        "requestBody": {"required": False, "content": _json({"description": "An AdmissionReview."})},
        "responses": {
            "200": {"description": "Allowed.", "content": _json(_ref("AdmissionReview"))},
            "403": _refusal("A page of another site sent it."),
        },
        "security": [],
    }


def _handshake(name: str) -> dict[str, Any]:
    """Return the description of CloudEvents' handshake for one of the two paths."""
    text = {"type": "string"}
    return {
        "operationId": name,
        "summary": "Allow a sender of CloudEvents to deliver (HTTP 1.1 Web Hooks for Event Delivery, section 4).",
        "parameters": [
            {
                "name": "WebHook-Request-Origin",
                "in": "header",
                "schema": {"type": "string", "maxLength": MAX_ORIGIN_CHARACTERS},
                "description": "The sender's DNS name; without it the answer is 405.",
            }
        ],
        "security": _SENDERS,
        "responses": {
            "200": {
                "description": "It may.",
                "headers": {
                    "WebHook-Allowed-Origin": {"schema": text, "required": True, "description": "The same name."},
                    "WebHook-Allowed-Rate": {"schema": text, "required": True, "description": "`*`: any."},
                },
            },
            "400": _refusal("The name is too long."),
            "401": _REFUSALS["401"],
            "403": _REFUSALS["403"],
            "405": _refusal("This is no handshake."),
            "421": _refusal("On loopback without a token, the host is none of this machine's."),
        },
    }


def _health(summary: str, *, may_fail: bool) -> dict[str, Any]:
    ok = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
    responses: dict[str, Any] = {"200": {"description": "Yes.", "content": _json(ok)}}
    if may_fail:
        responses["503"] = _refusal("Redis does not answer.", later=True)
    return {"summary": summary, "responses": responses, "security": []}


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Deployment relay",
        "description": "Accepts deployment events and delivers them to deployment-tracking systems.",
        "version": version("deployment-relay"),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    "security": [{"token": []}, {"tokenHeader": []}],
    "paths": {
        "/": {"post": _report("report"), "options": _handshake("handshake")},
        "/v1/deployments": {"post": _report("reportDeployment"), "options": _handshake("handshakeDeployment")},
        "/events/{event_id}": {
            "get": {
                "operationId": "receipt",
                "summary": "Return the receipt of an event that has an id.",
                "parameters": [
                    {"name": "event_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                ],
                "responses": {
                    "200": {"description": "The receipt.", "content": _json(_ref("Receipt"))},
                    "404": _refusal("There is no receipt, or it has expired."),
                    "421": _refusal("On loopback without a token, the host is none of this machine's."),
                    **_REFUSALS,
                },
            }
        },
        "/admission": {"post": _review("review")},
        "/admission/{secret}": {
            "post": {
                **_review("reviewWithSecret"),
                "parameters": [
                    {
                        "name": "secret",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "minLength": 1},
                        "description": "A secret of `gateway.admission_secret_file`, in place of a token.",
                    }
                ],
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "The relay's metrics for Prometheus; `gateway.metrics` sets who may read them.",
                "responses": {
                    "200": {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    "401": _refusal("A bearer token is missing."),
                    "403": _refusal("The token is wrong."),
                    "421": _refusal("On loopback, the host is none of this machine's."),
                },
            }
        },
        "/healthz": {"get": _health("Whether the process is alive.", may_fail=False)},
        "/readyz": {"get": _health("Whether a report would be accepted.", may_fail=True)},
    },
    "components": {
        "schemas": {
            "Event": _EVENT,
            "CloudEvent": _CLOUD_EVENT,
            "CDEvent": _CDEVENT,
            "Accepted": _ACCEPTED,
            "Fault": _FAULT,
            "Error": _ERROR,
            "Receipt": _RECEIPT,
            "AdmissionReview": _ADMISSION_REVIEW,
        },
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer"},
            "tokenHeader": {
                "type": "apiKey",
                "in": "header",
                "name": "X-Relay-Token",
                "description": "For senders that cannot set Authorization.",
            },
            "tokenQuery": {
                "type": "apiKey",
                "in": "query",
                "name": "access_token",
                "description": "For senders that can set no header at all.",
            },
        },
    },
}
