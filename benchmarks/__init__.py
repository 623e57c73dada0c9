"""What the relay costs and how fast it is, measured on this machine: `python -m benchmarks`."""
