"""HTTP checks and errors shared by the gateway and the console."""
