"""What Prometheus is told: exact, the same from every process, because all of it is read from Redis at the scrape.

The counters are written by the scripts that move the events, together with the move. So no process counts for itself,
and a restart, a second exporter or a lost worker changes no number.
"""
