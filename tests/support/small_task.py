"""A small task every Trainer test shares: a network with batch norm and dropout on random points."""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification

from hf_lottery import LotteryArguments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 20)
        self.norm = nn.BatchNorm1d(20)
        self.dropout = nn.Dropout(0.2)
        self.outer = nn.Linear(20, 3)

    def forward(self, x, labels=None):
        logits = self.outer(self.dropout(self.norm(self.inner(x)).relu()))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Points(Dataset):
    def __init__(self, n=48):
        self.x = torch.randn(n, 6, generator=torch.Generator().manual_seed(4))
        self.labels = self.x[:, :3].argmax(1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.labels[i]}


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Stop the process, as far as a test can, right after a step of a level."""

    def __init__(self, level, step):
        self.level, self.step = level, step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith(f"level-{self.level:02d}") and state.global_step == self.step:
            raise Killed


def net(seed=1):
    torch.manual_seed(seed)
    return Net()


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 16, "num_train_epochs": 2, "learning_rate": 0.01,
        "use_cpu": True, "disable_tqdm": True, "save_steps": 2, "logging_steps": 1, "sparsity": 0.6,
        "pruning_fraction": 0.3, "optim": "adamw_torch", "lr_scheduler_type": "linear", "dataloader_pin_memory": False,
    }  # fmt: skip
    return LotteryArguments(**(settings | changes))


def vit(seed, **changes):
    """A small real transformer for 8x8 images of one channel."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8,
        "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    return ViTForImageClassification(ViTConfig(**(sizes | changes)))
