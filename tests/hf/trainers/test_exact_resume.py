"""A search that is killed at any moment, and a training that is resumed, end as if they had not been interrupted."""

import json
from functools import cache

import pytest
import torch
from kill_moments import KilledHere, Moments
from small_searches import equal, eval_losses, state, trainer, weights_of
from small_task import Points
from transformers import EarlyStoppingCallback, TrainerCallback

BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


class Stream(torch.utils.data.IterableDataset):
    """The points in their order, without a length."""

    def __iter__(self):
        points = Points()
        return (points[i] for i in range(len(points)))


class EndsEpochs(TrainerCallback):
    """Ends every epoch after two of its three steps."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 2 == 0:
            control.should_epoch_stop = True


# An epoch has three batches of 16, and a level two epochs, unless the settings say otherwise.
RUNS = {
    "constant": {"lr_scheduler_type": "constant", "save_steps": 3, "num_train_epochs": 4 / 3},
    "cosine, rewound": {"lr_scheduler_type": "cosine", "rewind": "step:2", "max_steps": 5, "eval_strategy": "epoch"},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "save_steps": 1},
    "best of epochs": {"save_strategy": "epoch", "eval_strategy": "epoch", **BEST},
    "best of steps": {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, "max_steps": 5, **BEST},
    "only the best": {
        "save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1, **BEST,
    },
    "accumulation": {"gradient_accumulation_steps": 2, "num_train_epochs": 2.5, "save_steps": 1, "rewind": "step:1"},
    "no checkpoints": {"save_strategy": "no", "rewind": "learning_rate"},
    "stream": {"max_steps": 5, "save_steps": 1, "data": Stream},
    "shuffled by torch": {"accelerator_config": {"use_seedable_sampler": False}, "save_steps": 1},
    "early stop": {
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "num_train_epochs": 4, "learning_rate": 0.3, **BEST,
        "stops": lambda: EarlyStoppingCallback(2),
    },
    "short epochs": {"save_steps": 1, "eval_strategy": "epoch", "stops": EndsEpochs},
    "evaluated first": {
        "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "rewind": "learning_rate",
        **BEST, "stops": lambda: EarlyStoppingCallback(3),
    },
}  # fmt: skip
QUICK = ("constant", "plateau", "stream")


def search(folder, name, moments):
    changes = dict(RUNS[name])
    data, stops = changes.pop("data", None), changes.pop("stops", None)
    callbacks = [*([stops()] if stops else []), moments.callback()]
    ours = trainer(folder, callbacks=callbacks, **({"sparsity": None, "levels": 2} | changes))
    if data:
        ours.train_dataset = data()
    return ours


def found(ours, folder):
    return {
        "mask": {name: entry.tolist() for name, entry in ours.mask.items()},
        "start": weights_of(folder / "ticket/rewind.safetensors"),
        "losses": eval_losses(ours),
        "steps": [record["steps"] for record in json.loads((folder / "lottery_state.json").read_text())["finished"]],
    }


STRIDE = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What each search finds when nothing interrupts it, and its moments."""

    @cache
    def run(name):
        folder, moments = tmp_path_factory.mktemp("whole"), Moments()
        ours = search(folder, name, moments)
        with moments.watched():
            ours.train()
        return found(ours, folder), state(ours.model), moments.seen

    return run


def check(folder, name, whole, kill):
    expected, weights, _ = whole(name)
    moments = Moments(kill)
    with pytest.raises(KilledHere), moments.watched():
        search(folder, name, moments).train()
    resumed = search(folder, name, Moments())
    resumed.train(resume_from_checkpoint=True)
    assert found(resumed, folder) == expected, moments.seen[-1]
    assert equal(state(resumed.model), weights), moments.seen[-1]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in RUNS])
def test_killed_after_its_last_checkpoint(tmp_path, whole, name):
    moments = whole(name)[2]
    saves = [number for number, moment in enumerate(moments) if " save " in moment]
    check(tmp_path, name, whole, saves[-1] if saves else len(moments) - 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_moments_all_over(tmp_path, whole, name):
    """Every seventh moment of each kind of run, and other ones in every kind; set STRIDE to 1 to try all 1,225."""
    for kill in range([*RUNS].index(name) % STRIDE, len(whole(name)[2]), STRIDE):
        check(tmp_path / str(kill), name, whole, kill)
