"""``python -m metarl``: the commands, where the script is not on the path."""

import sys

from metarl.cli import main

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working folder, which the script called metarl does not search either
    sys.exit(main())
