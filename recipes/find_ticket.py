"""Find a lottery ticket: levels of train, prune and rewind on any image classifier, text classifier or causal LM.

    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --compare 5
    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --sparsity 0.9 --rewind step:50
    accelerate launch recipes/find_ticket.py --config recipes/digits/aws.yaml       # signs for any seed
    accelerate launch recipes/find_ticket.py --config recipes/digits/imp.yaml --plan       # what it will cost
    accelerate launch recipes/find_ticket.py --task text-classification \\
        --model_name_or_path google-bert/bert-base-uncased --dataset_name nyu-mll/glue --dataset_config sst2 \\
        --rewind pretrained --sparsity 0.7 --output_dir outputs/sst2

The third command searches by "A Winning Sign" (Oh et al., 2025). The ticket is in ``output_dir/ticket``, and
``output_dir/report.html`` shows it. A run that was stopped goes on where it stopped.
``hf-lottery find`` is the same command.
"""

import sys

from hf_lottery.hf.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["find", *sys.argv[1:]]))
