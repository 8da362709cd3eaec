"""``python -m keepwell`` is ``keepwell``."""

import sys

from keepwell.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
