"""`relay`, and `python -m relay`: the command line, imported with the garbage collector at rest.

What is imported stays. To look for garbage among it, again and again while it grows, took a tenth of a short command.
"""

import gc

gc.disable()

from relay.cli import main  # noqa: E402 - the collector is to rest before

if __name__ == "__main__":
    main()
