"""Align a ticket's mask to a network of another seed.

    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --init seed:7 --mask none --output_dir outputs/dense-7
    accelerate launch recipes/align_mask.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --source_model outputs/digits-imp/level-00/trained --target_model outputs/dense-7 --method activation \\
        --output_dir outputs/aligned

The first command trains the dense network of the other seed. ``hf-lottery align`` is the same command.
"""

import sys

from hf_lottery.hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["align", *sys.argv[1:]]))
