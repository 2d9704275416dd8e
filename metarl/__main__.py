"""``python -m metarl``: the commands, where the script is not on the path."""

import sys

from metarl.cli import main

if __name__ == "__main__":
    sys.exit(main())
