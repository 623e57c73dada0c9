"""Constants of the browser tests and their fixtures."""

OPERATOR_TOKEN = "operator-token-of-the-tests"

#: A browser may be slow on a loaded machine.
PATIENCE_MILLISECONDS = 40_000
