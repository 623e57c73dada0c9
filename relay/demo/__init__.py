"""The demo: a simulated estate whose events are replayed through the relay's processes."""
