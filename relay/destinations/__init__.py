"""What a destination is sent and how its answers read, one module for each kind. Values and functions without I/O."""
