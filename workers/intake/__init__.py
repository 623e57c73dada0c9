"""Intake: entries of the inbox are validated, deduplicated and routed to outboxes."""
