"""A stand-in for the deployment API that checks and records requests, and fails on demand.

`relay sandbox`, the demo and the tests use it. `Sandbox` runs it in a thread of this process, `serve` as a process.
"""

from relay.sandbox.record import Counts, RecordedRequest
from relay.sandbox.settings import SandboxSettings, read_settings
from relay.sandbox.thread import Sandbox, serve

__all__ = ["Counts", "RecordedRequest", "Sandbox", "SandboxSettings", "read_settings", "serve"]
