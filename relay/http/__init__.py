"""What the gateway and the console share of HTTP."""
