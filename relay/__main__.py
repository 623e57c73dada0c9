"""`relay` and `python -m relay`: the command line, imported with the garbage collector disabled.

Modules are never garbage. Collecting while they are imported took a tenth of a short command's time.
"""

import gc

gc.disable()

from relay.cli import main  # noqa: E402 - the collector must be disabled first

if __name__ == "__main__":
    main()
