"""Train a saved ticket, or the controls that it must beat.

The ticket; its mask on another initialization; its mask aligned to the network of another seed (see align_mask.py):

    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --output_dir outputs/digits-lth
    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --init seed:7 --output_dir outputs/digits-naive
    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --init checkpoint:outputs/dense-7 --mask aligned --aligned outputs/aligned --output_dir outputs/digits-permuted

The signs of a ticket of "A Winning Sign" (see find_ticket.py) on another initialization:

    accelerate launch recipes/train_ticket.py --config recipes/digits/aws.yaml --ticket outputs/digits-aws/ticket \\
        --init seed:7 --signs ticket --output_dir outputs/digits-sign-transfer

``hf-lottery train`` is the same command, and says what the controls are.
"""

import sys

from hf_lottery.hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
