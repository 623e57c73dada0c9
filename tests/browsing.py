"""What the tests with a browser and their fixtures agree on."""

OPERATOR_TOKEN = "operator-token-of-the-tests"

#: A browser on a loaded machine is slow, and slow is no fault.
PATIENCE_MILLISECONDS = 40_000
