"""The stand-in itself, without a network: contract, faults and counters put together."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from relay.sandbox.contract import Request, judge
from relay.sandbox.faults import FaultPlan
from relay.sandbox.record import Counters, RecordFile
from relay.sandbox.script import Script, write_script

if TYPE_CHECKING:
    from relay.sandbox.settings import SandboxSettings


class StandIn:
    """Takes requests, one at a time, and says what is done with each."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._token = None if settings.token is None else settings.token.encode()
        self.faults = FaultPlan(clock=time.monotonic, rng=random.Random())  # noqa: S311 - faults, not secrets
        self.faults.replace(settings.faults)
        self.counters = Counters(
            keep=settings.keep,
            monotonic=time.monotonic,
            wall=time.time,
            file=None if settings.record is None else RecordFile(settings.record),
        )

    def take(self, request: Request, *, connection: int, keep_alive: bool) -> Script:
        """Judge and record a request; the script is to be played after."""
        ruling = judge(request, self._token)
        fault = None
        if self.faults:
            fault = self.faults.befall(environment=ruling.environment, image=ruling.image)
        script = write_script(ruling, None if fault is None else fault.effect, keep_alive=keep_alive)
        if script.recorded:
            self.counters.add(
                connection=connection,
                path=request.path,
                idempotency_key=request.idempotency_key,
                environment=ruling.environment,
                status=script.status,
                processed=script.processed,
                fault=None if fault is None else fault.kind,
                body=request.body,
            )
        return script

    def reset(self) -> None:
        """Forget requests, counts and faults."""
        self.counters.reset()
        self.faults.replace(())
