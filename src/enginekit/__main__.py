"""`python -m enginekit`."""

import sys

from enginekit.cli import main

if __name__ == "__main__":
    sys.exit(main())
