"""Small searches that the tests of the Trainers share, and what these tests look at."""

import io
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_task import KillAt, Points, arguments, net, vit
from transformers import TrainerCallback

from hf_lottery import LotteryTrainer, Mask, Snapshot, WinningSignTrainer, prunable


def mask_for(model):
    generator = torch.Generator().manual_seed(2)
    return Mask({n: torch.rand(p.shape, generator=generator) > 0.6 for n, p in prunable(model).items()})


def trainer(folder, *, kind=LotteryTrainer, model=None, kill=None, callbacks=(), extra=None, **changes):
    """A search of four levels of six steps each, with checkpoints."""
    return kind(
        model=model or net(),
        args=arguments(folder, **changes),
        train_dataset=Points(),
        eval_dataset=Points(20),
        callbacks=[*callbacks, *([KillAt(*kill)] if kill else [])],
        **(extra or {}),
    )


def quick(folder, **changes):
    """A search of two levels of three steps each, without checkpoints, unless ``changes`` say otherwise."""
    amount = {} if "sparsity" in changes else {"sparsity": None, "levels": 1}
    return trainer(folder, **({"save_strategy": "no", "num_train_epochs": 1} | amount | changes))


aws = partial(trainer, kind=WinningSignTrainer)
quick_aws = partial(quick, kind=WinningSignTrainer)


def weights_of(folder):
    return Snapshot.load(folder).sha256()


def weights(model):
    return Snapshot.capture(model).sha256()


def trained_weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def eval_losses(search):
    return [record["metrics"]["eval_loss"] for record in search.history]


class Record(TrainerCallback):
    """Keeps the learning rate of every step, and every log."""

    def __init__(self):
        self.rates, self.logs = [], []

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


class Watch(TrainerCallback):
    """Keeps the weights that each level starts from, and those after each step of the first level."""

    def __init__(self):
        self.starts, self.moments = [], {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.starts.append(weights(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.moments.setdefault(state.global_step, weights(model))


@dataclass
class Finished:
    """A finished search, which tests share and must not change."""

    folder: Path
    rewind: str
    record: Record = field(default_factory=Record)
    watch: Watch = field(default_factory=Watch)
    shown: str = ""

    def run(self):
        self.search = trainer(self.folder, rewind=self.rewind, callbacks=[self.record, self.watch], disable_tqdm=False)
        with redirect_stderr(io.StringIO()) as stderr:
            self.output = self.search.train()
        self.shown = stderr.getvalue()
        return self


class Images(torch.utils.data.Dataset):
    """Images of noise whose label is the sign of their mean."""

    def __len__(self):
        return 48

    def __getitem__(self, i):
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": image, "labels": int(image.mean() > 0)}


def dropout_vit(seed=1):
    """A ViT, which transformers saves under other names than its parameters have."""
    return vit(seed, hidden_dropout_prob=0.1)
