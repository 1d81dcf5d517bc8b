"""The transfer ladder: every way of reusing a ticket, on the same networks, budget and sparsity, with intervals.

    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml --plan
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml --widths 1 2 4
    accelerate launch recipes/transfer_ladder.py --config recipes/fashion_mnist/rebasin.yaml
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/sign_transfer.yaml

The last two are the experiments of the two papers: aligned masks (Adnan et al., 2025) and signs (Oh et al., 2025). A
ladder that was interrupted goes on when the same command is run again. ``hf-lottery ladder`` is the same command, and
says what the numbers are; ``--help`` lists the rows.
"""

import sys

from hf_lottery.hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["ladder", *sys.argv[1:]]))
