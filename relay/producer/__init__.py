"""Producers of deployment events: through Redis, through a gateway, with a spool."""
