"""The values that a run of delivery works with."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from relay.errors import ConfigurationError
from workers.runtime import Runtime

if TYPE_CHECKING:
    from random import Random

    from workers.delivery.transport import CurlTransport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRuntime(Runtime):
    """A runtime that can also send to the destination."""

    transport: CurlTransport
    random: Random

    def reload_token(self) -> None:
        """Read the token again, so that a rotated one needs no restart; count a change and a failure."""
        try:
            outcome = "changed" if self.transport.reload_token() else ""
        except ConfigurationError as error:
            _log.warning("the token cannot be read; the previous one stays in use: %s", error)
            outcome = "failed"
        if outcome:
            with contextlib.suppress(RedisError):  # only a counter; the run itself reports a Redis that fails
                self.client.hincrby(self.keys.counts, f"token:{outcome}", 1)

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()
        self.client.close()
