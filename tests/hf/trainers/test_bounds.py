"""Numbers that no training can use are refused before anything begins."""

import pytest

from hf_lottery import LotteryArguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be from 0 to 4294967295; received -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295"),
        ({"data_seed": -1}, "data_seed must be from 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1; received 0"),
        ({"per_device_eval_batch_size": -4}, "per_device_eval_batch_size must be at least 1; received -4"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0; received nan"),
        ({"fine_tuning_learning_rate": -1, "rewind": "none"}, "fine_tuning_learning_rate must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be positive; received 0"),
        ({"level_epochs": float("nan")}, "level_epochs must be positive; received nan"),
        ({"max_steps": 0}, "max_steps must be positive, or -1 to count epochs; received 0"),
        ({"min_density": 2}, r"min_density must be in \[0, 1\]; received 2"),
        ({"label_smoothing_factor": 3}, r"label_smoothing_factor must be in \[0, 1\]"),
        ({"adam_beta2": 1.0}, r"adam_beta2 must be in \[0, 1\); received 1.0"),
    ],
)
def test_numbers_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        LotteryArguments(str(tmp_path), sparsity=0.5, use_cpu=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 0, "data_seed": 2**32 - 1, "learning_rate": 0, "max_steps": 1, "dataloader_num_workers": 0},
        {"per_device_train_batch_size": 1, "eval_accumulation_steps": 1, "adam_beta1": 0, "min_density": 1},
    ],
)
def test_numbers_at_the_edge(tmp_path, settings):
    args = LotteryArguments(str(tmp_path), sparsity=0.5, use_cpu=True, **settings)
    assert {name: getattr(args, name) for name in settings} == settings
