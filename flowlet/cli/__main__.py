"""``python -m flowlet.cli``, where the script is not on the path."""

import sys

from flowlet.cli import main

if __name__ == "__main__":
    sys.exit(main())
