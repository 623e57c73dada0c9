"""Processes that the relay starts: `relay up`, the demo, tests."""
