"""The Celery side: the app, its tasks, wake-ups, and what stands in when the broker is away."""
