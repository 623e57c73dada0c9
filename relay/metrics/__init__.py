"""Prometheus metrics, read from Redis at each scrape: exact for the whole cluster, and equal from every process.

The scripts that move events write the counters together with the move. No process counts for itself, so a restart, a
second exporter or a lost worker changes no number.
"""
