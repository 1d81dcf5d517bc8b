"""The transfer ladder: every way of reusing a ticket, on the same networks, budget and sparsity, with intervals.

    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml --plan
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_conv.yaml --widths 1 2 4

The experiments of the two papers are ladders too:

    accelerate launch recipes/transfer_ladder.py --config recipes/fashion_mnist/rebasin.yaml
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/sign_transfer.yaml

``--help`` says what each row is, and hf_lottery/hf/ladder/main.py how the numbers are made. The results lie in
``output_dir``: ``report.html`` and ``ladder.json``, which ``python -m hf_lottery.hf.ladder.show`` prints again. After
an interruption the same command goes on.
"""

from hf_lottery.hf.ladder.main import main

if __name__ == "__main__":
    main()
