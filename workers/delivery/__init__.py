"""Delivery: events of the outboxes are sent to the destination, and their outcomes committed."""
