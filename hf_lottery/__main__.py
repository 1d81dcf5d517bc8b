"""``python -m hf_lottery``: the command line, as ``hf-lottery``."""

import sys

from .hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
