"""What `relay demo` plays: an estate's event log, and an independent reckoning of it."""
