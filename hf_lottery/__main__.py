"""``python -m hf_lottery``: the command line, as ``hf-lottery``."""

import sys

from .hf.commands.main import main

sys.exit(main())
