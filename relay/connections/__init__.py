"""Clients of Redis and of the broker: options, TLS, failover."""
