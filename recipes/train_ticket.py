"""Train a saved ticket, or the controls it must beat.

    accelerate launch recipes/train_ticket.py --config recipes/digits/imp.yaml --ticket outputs/digits-imp/ticket \\
        --output_dir outputs/digits-lth

``--init ticket --mask ticket`` (the default) is the lottery-ticket run; ``--init seed:7`` the naive transfer to another
initialization; ``--init checkpoint:FOLDER --mask aligned --aligned FOLDER`` the permuted one (see align_mask.py);
``--mask random`` and ``--mask shuffled`` forget which weights, ``--mask none`` trains dense.

A ticket of AWS (see find_ticket.py) wins from any seed with its signs:

    accelerate launch recipes/train_ticket.py --config recipes/digits/aws.yaml --ticket outputs/digits-aws/ticket \\
        --init seed:7 --signs ticket --output_dir outputs/digits-sign-transfer

Its controls: no ``--signs`` (mask only), ``--signs random``, ``--signs shuffled``, ``--signs checkpoint:FOLDER`` (a
dense network's), ``--keep_norms`` (the ticket's norms as well), ``--fold_norms`` (its norm gains in the weights), and
``--init ticket``, its network trained on.
"""

from hf_lottery.hf.commands.train_ticket import main

if __name__ == "__main__":
    main()
