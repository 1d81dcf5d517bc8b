"""Align a ticket's mask to a network of another seed.

    accelerate launch recipes/align_mask.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --source_model outputs/digits-imp/level-00/trained --target_model outputs/dense-7 --method activation \\
        --output_dir outputs/aligned

Finds which axes of the network may be permuted (``discover``, verified on the network itself), matches the dense
trained ``source_model`` that the ticket comes from to the dense trained ``target_model``, and writes the permuted mask,
the permutation and a table of the match. Then ``train_ticket.py --init checkpoint:... --mask aligned --aligned
outputs/aligned`` trains it on the target's seed.

Reference: Adnan et al., 2025, arXiv:2505.05143.
"""

from hf_lottery.hf.commands.align_mask import main

if __name__ == "__main__":
    main()
