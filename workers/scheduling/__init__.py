"""Everything Celery: the app, its tasks, wake-ups, the poller that sends them, and the fallback without a broker."""
