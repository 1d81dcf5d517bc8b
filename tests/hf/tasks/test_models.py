"""The model that the command line names: its configuration, and what is loaded from a folder."""

import pytest
from recipe_runs import ROOT

from hf_lottery.hf.tasks.models import ModelArguments, load_checkpoint, load_network


def test_a_configuration_can_be_overridden(tmp_path):
    named = {"config_name": str(ROOT / "recipes/mnist1d/resnet8_1d.json")}
    assert ModelArguments(**named).load_config().width == 1
    config = ModelArguments(**named, config_overrides="width=4,num_channels=3").load_config(num_channels=1)
    assert (config.width, config.num_channels) == (4, 3)
    with pytest.raises(ValueError, match="key depth isn't in the original config"):
        ModelArguments(**named, config_overrides="depth=4").load_config()
    with pytest.raises(ValueError, match="config_overrides must go with config_name or model_type; received model_"):
        ModelArguments(model_name_or_path=str(tmp_path), config_overrides="width=4")


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the checkpoint must be a folder; received nowhere"):
        load_checkpoint("nowhere", "image-classification")
    with pytest.raises(FileNotFoundError, match="must be a folder or repository of a model or ticket; received .*none"):
        load_network(str(tmp_path / "none"), "image-classification")
