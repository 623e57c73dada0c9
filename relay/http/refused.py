"""The error of a refused request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import RelayError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http import HTTPStatus


class Refused(RelayError):  # noqa: N818 - the past participle says it
    """The request is refused as a whole, with an HTTP status."""

    def __init__(self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}
