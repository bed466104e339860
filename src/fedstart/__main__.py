"""`python -m fedstart` is the command `fedstart`."""

import sys

from fedstart.cli import main

if __name__ == "__main__":
    sys.exit(main())
