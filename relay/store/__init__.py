"""What lies in Redis, one file a thing, and the scripts that move it."""
