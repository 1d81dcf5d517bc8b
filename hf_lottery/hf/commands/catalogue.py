"""The commands of ``hf-lottery``: what each one does, an example, and what an interruption leaves."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_SAME = "The same command starts again"


@dataclass(frozen=True)
class Entry:
    """One command.

    Attributes:
        module: The module in ``hf_lottery.hf`` whose ``main`` runs it.
        about: What it does, in one line.
        examples: Command lines, without ``hf-lottery`` and the name.
        interrupted: How to go on after an interruption.
        plain: Whether it only reads and writes masks, so that it needs no processes and no Trainer.
    """

    module: str
    about: str
    examples: tuple[str, ...]
    interrupted: str = f"{_SAME}."
    plain: bool = False

    def epilog(self, name: str) -> str:
        """The examples, as they are at the end of a help text."""
        lines = (
            textwrap.wrap(
                f"hf-lottery {name} {example}", 100, break_on_hyphens=False, initial_indent="  ",
                subsequent_indent="      ",
            )
            for example in self.examples
        )  # fmt: skip
        return "\n".join(["examples:", *(" \\\n".join(parts) for parts in lines)])


# In the order of use.
CATALOGUE: dict[str, Entry] = {
    "find": Entry(
        "commands.find_ticket",
        "find a ticket: train, prune, rewind, level after level",
        (
            "--dataset_name digits --model_type lenet --sparsity 0.9 --rewind epoch:1 --num_train_epochs 10 "
            "--learning_rate 2e-3 --output_dir outputs/digits",
            "--task text-classification --model_name_or_path google-bert/bert-base-uncased --dataset_name "
            "nyu-mll/glue --dataset_config sst2 --rewind pretrained --sparsity 0.7 --output_dir outputs/sst2",
            "--config search.yaml --plan",
        ),
        "What is finished is kept. The same command goes on where it stopped.",
    ),
    "train": Entry(
        "commands.train_ticket",
        "train a ticket, its mask or its signs on another seed, or a control",
        (
            "--ticket outputs/digits/ticket --num_train_epochs 10 --learning_rate 2e-3 --output_dir outputs/again",
            "--ticket outputs/digits/ticket --init seed:7 --num_train_epochs 10 --learning_rate 2e-3 "
            "--output_dir outputs/naive-7",
            "--ticket outputs/digits/ticket --init seed:7 --mask none --num_train_epochs 10 --learning_rate 2e-3 "
            "--output_dir outputs/dense-7",
        ),
        "With --resume_from_checkpoint true the same command goes on from the last checkpoint, if there is one.",
    ),
    "align": Entry(
        "commands.align_mask",
        "carry a mask over to the network of another seed",
        ("--ticket outputs/digits/ticket --target_model outputs/dense-7 --output_dir outputs/aligned",),
    ),
    "connect": Entry(
        "commands.connectivity",
        "see whether two networks lie in the same basin",
        ("--a outputs/digits/level-00/trained --b outputs/dense-7 --output_dir outputs/connectivity",),
    ),
    "ladder": Entry(
        "ladder.main",
        "compare all ways of reusing a ticket, over several seeds",
        (
            "--dataset_name digits --model_type lenet --sparsity 0.9 --num_train_epochs 10 --learning_rate 2e-3 "
            "--seeds 0 1 2 --output_dir outputs/ladder",
            "--config ladder.yaml --plan",
        ),
        "What is finished is kept. The same command computes what is missing.",
    ),
    "levels": Entry(
        "commands.compare_levels",
        "compare a ticket with its controls, level by level, over several searches",
        ("outputs/digits-0 outputs/digits-1 --picture levels.png",),
        plain=True,
    ),
    "show": Entry(
        "ladder.show",
        "show the results of ladders again, or one number of several side by side",
        ("outputs/ladder/ladder.json", "a/ladder.json b/ladder.json --compare minus_naive"),
        plain=True,
    ),
    "shrink": Entry(
        "commands.shrink",
        "cut units out of a network: those that its ticket removed, dead ones, or a share of the smallest",
        (
            "outputs/digits-structured/seed-0/ticket --output outputs/small",
            "outputs/again --output outputs/small --sparsity 0.5 --multiple 8",
        ),
        plain=True,
    ),
    "inspect": Entry(
        "commands.inspect_source",
        "show what a mask, signed mask, series, ticket or permutation holds",
        ("outputs/digits/ticket", "me/bert-sst2-imp-90 --json"),
        plain=True,
    ),
    "diff": Entry(
        "commands.diff_masks",
        "compare two masks, parameter by parameter; the exit status is 1 if they differ",
        ("outputs/digits/ticket outputs/aligned",),
        plain=True,
    ),
    "verify": Entry(
        "commands.verify_source",
        "check files, and that a model fits and is pruned; the exit status is 1 if not",
        ("outputs/digits/ticket", "outputs/digits/ticket --model outputs/again"),
        plain=True,
    ),
    "pack": Entry(
        "commands.pack_mask",
        "save the zeros of a sparse model as a mask",
        ("outputs/again --output outputs/mask",),
        plain=True,
    ),
    "completion": Entry(
        "commands.completion",
        "print a script that completes commands and options in bash and zsh",
        ("bash >> ~/.bashrc", "zsh >> ~/.zshrc"),
        plain=True,
    ),
}
