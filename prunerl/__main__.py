"""``python -m prunerl`` is the command ``prunerl``."""

from __future__ import annotations

import sys

from prunerl.cli import main

if __name__ == "__main__":  # worker processes import this file, too
    sys.argv[0] = "prunerl"  # so that a report names the command that can be typed
    sys.exit(main())
