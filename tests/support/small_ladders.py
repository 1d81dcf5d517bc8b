"""Ladders that are computed in seconds."""

from pathlib import Path

from hf_lottery.hf.ladder.compute import compute_cell
from hf_lottery.hf.ladder.sweep import points

ROOT = Path(__file__).parent.parent.parent
# One level, one epoch from the rewind point on.
BRIEF = [
    "--seeds", "0", "1", "--num_train_epochs", "2", "--rewind", "epoch:1", "--dense_epochs", "1", "--level_epochs", "1",
    "--sparsity", "0.3", "--pruning_fraction", "0.3", "--match_batches", "2", "--max_train_samples", "200",
    "--max_eval_samples", "100", "--use_cpu", "true", "--disable_tqdm", "true",
]  # fmt: skip
CONV = [
    *BRIEF, "--dataset_name", "mnist1d", "--config_name", "recipes/mnist1d/resnet8_1d.json",
    "--title", "ResNet-8 on MNIST-1D", "--output_dir", "outputs/ladder/small", "--per_device_train_batch_size", "100",
    "--per_device_eval_batch_size", "1000", "--learning_rate", "2e-3", "--lr_scheduler_type", "cosine",
    "--logging_strategy", "no", "--dataloader_pin_memory", "false",
]  # fmt: skip


def small_ladder(folder, *more):
    """Make a ladder of convolutional networks on MNIST-1D."""
    (point,) = points([*CONV, "--output_dir", str(folder), *more])
    return point


def compute_all(ladder):
    """Compute the cells of a ladder in this process that have no result."""
    for cell in ladder.cells:
        if ladder.result(cell) is None:
            compute_cell(ladder, cell)
