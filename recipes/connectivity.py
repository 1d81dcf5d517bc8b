"""See whether two trained networks lie in the same basin, before and after one is aligned to the other.

    accelerate launch recipes/connectivity.py --config recipes/digits/imp.yaml --a outputs/dense-1 \\
        --b outputs/dense-2 --align activation --output_dir outputs/connectivity

``report.html`` in the output folder shows the error on the straight line between the networks, the match of their units
and the overlap of their masks. ``hf-lottery connect`` is the same command.
"""

import sys

from hf_lottery.hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["connect", *sys.argv[1:]]))
