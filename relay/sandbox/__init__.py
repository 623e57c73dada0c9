"""A stand-in for the reporting API: checks, records, and can be told to fail.

It is the demo's API and the tests' oracle. `Sandbox` runs it inside a process, `serve` as one.
"""

from relay.sandbox.record import Counts, RecordedRequest
from relay.sandbox.server import Sandbox, serve
from relay.sandbox.settings import SandboxSettings, read_settings

__all__ = ["Counts", "RecordedRequest", "Sandbox", "SandboxSettings", "read_settings", "serve"]
