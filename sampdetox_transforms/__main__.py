"""``python -m sampdetox_transforms``: the same as the command ``sampdetox``."""

import sys

from sampdetox_transforms.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
