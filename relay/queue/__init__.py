"""The queue in Redis: its keys, entries and scripts. No other package knows them."""
