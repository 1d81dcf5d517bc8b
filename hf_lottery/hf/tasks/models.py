"""The model of a task: the options that name it, building it with fresh or pretrained weights, and loading it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import CONFIG_NAME

from ..hub.model_config import check_no_kernels
from ..hub.ticket import Ticket
from ..hub.transfer import model_folder
from . import paper_networks  # noqa: F401  # registers the papers' networks with the Auto classes
from .data import Data
from .sources import ask_hub, check_model

# The tasks of the recipes, and the Auto class of their models.
AUTO_MODELS: dict[str, Any] = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}
# The models that each of these classes knows, by their configuration.
_KNOWN: dict[str, Any] = {
    "image-classification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "text-classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "causal-lm": MODEL_FOR_CAUSAL_LM_MAPPING,
}


@dataclass
class ModelArguments:
    """Which model, and what it is for.

    Raises:
        ValueError: The task is unknown, or options contradict each other.
    """

    # In each pair, one flag on the command line overrides the other's value in a file.
    ALTERNATIVES: ClassVar[tuple[tuple[str, str], ...]] = (
        ("model_type", "config_name"), ("model_type", "model_name_or_path"),
    )  # fmt: skip

    task: str = field(
        default="image-classification", metadata={"help": f"What the model is for: {', '.join(AUTO_MODELS)}."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained model: Hub id or local folder. Give this, config_name or model_type."},
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "The configuration of a model without weights: Hub id, local folder or config.json."},
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": "A network without weights, with the default sizes of its type: lenet, resnet_cifar, vgg_cifar, "
            "mlp_mixer, or any type of transformers, such as vit."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "With config_name or model_type: fields of the configuration to change, as in width=4,depth=2."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    processing_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer or image processor: Hub id or local folder. Default: that of the model."},
    )

    def __post_init__(self) -> None:
        if self.task not in AUTO_MODELS:
            raise ValueError(f"task must be one of {', '.join(AUTO_MODELS)}; received {self.task!r}.")
        if self.config_overrides is not None and self.model_name_or_path is not None:
            raise ValueError(
                "config_overrides must go with config_name or model_type; received model_name_or_path. The weights of "
                "a pretrained model fit its own configuration alone."
            )
        if self.model_type is not None:
            if other := self.config_name or self.model_name_or_path:
                raise ValueError(f"model_type must name the only network; received {other!r} too. Give one of them.")
            if self.model_type not in CONFIG_MAPPING:
                near = difflib.get_close_matches(self.model_type, CONFIG_MAPPING.keys(), n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(
                    f"model_type must be one that transformers knows, or lenet, resnet_cifar, vgg_cifar, mlp_mixer; "
                    f"received {self.model_type!r}.{hint}"
                )

    def load_config(self, **overrides: Any) -> PreTrainedConfig:
        """Load the configuration that the arguments name.

        Args:
            overrides: Fields of the configuration to set, such as those that follow from the data.

        Raises:
            ValueError: No configuration is named, it is no configuration of a model of the task, or it has no such
                fields as ``config_overrides`` names.
            FileNotFoundError: It does not exist.
            HubError: The Hub cannot be reached.
        """
        name = self.model_type or self.config_name or self.model_name_or_path
        if name is None:
            raise ValueError(
                "model_name_or_path, config_name or model_type must be given; received none of them. The smallest "
                "network is --model_type lenet."
            )
        load = self._load_config if self.model_type is None else _default_config
        config = load(name, overrides)
        if type(config) not in _KNOWN[self.task]:
            fit = [task for task, known in _KNOWN.items() if type(config) in known]
            hint = f"Use --task {' or '.join(fit)}." if fit else "Choose another model."
            raise ValueError(f"the model must be one for {self.task}; received {name} ({config.model_type}). {hint}")
        if self.config_overrides is not None:
            try:
                config.update_from_string(self.config_overrides)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"config_overrides must set fields of {type(config).__name__}, as in width=4,depth=2; received "
                    f"{self.config_overrides!r}: {error}"
                ) from error
        return config

    def _load_config(self, name: str, overrides: Mapping[str, Any]) -> PreTrainedConfig:
        check_model(name, "config_name" if self.config_name else "model_name_or_path", revision=self.model_revision)
        try:
            config = AutoConfig.from_pretrained(
                name, revision=self.model_revision, **overrides, trust_remote_code=False
            )
            check_no_kernels(config, name)
        except OSError:
            raise
        except Exception as error:  # what a configuration can do wrong has no end
            raise ValueError(f"{name} must be the configuration of a known model; received: {error}") from error
        return config


def _default_config(model_type: str, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **overrides)


def build_model(model_args: ModelArguments, data: Data, seed: int, *, fresh: bool = False) -> PreTrainedModel:
    """Build the model of a task.

    Args:
        model_args: Which model.
        data: What it will train on, which decides classes and image size.
        seed: Draws the weights that are not pretrained.
        fresh: Draw all weights, even if a pretrained model is named.

    Raises:
        ValueError: No network can be made of the configuration.
    """
    set_seed(seed)
    config = model_args.load_config(**data.config_kwargs)
    auto = AUTO_MODELS[model_args.task]
    if fresh or model_args.model_name_or_path is None:
        try:
            return auto.from_config(config, trust_remote_code=False)
        except Exception as error:  # what a configuration can do wrong has no end
            cause = " ".join(f"{type(error).__name__}: {error!s:.300}".split()).rstrip(".")
            raise ValueError(
                f"the configuration must be one that a network can be made of; received a {type(config).__name__} "
                f"that fails with {cause}. Correct config_overrides, or the file."
            ) from error
    return auto.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        revision=model_args.model_revision,
        ignore_mismatched_sizes=True,  # the head of another label set
        trust_remote_code=False,
    )


def load_pretrained(source: str | Path, task: str, *, revision: str | None = None) -> PreTrainedModel:
    """Load a trained model of a task, with its own configuration and without code of a repository.

    Args:
        source: Its folder or repository.
        task: What it is for.
        revision: Branch, tag or commit on the Hub.

    Raises:
        OSError: There is no such model.
        ValueError: It needs code of a repository.
    """
    if Path(source).is_dir() and not (Path(source) / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"the network must be a folder with a {CONFIG_NAME}; received {source}, without one.")
    where: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **where)
    check_no_kernels(config, source)
    return AUTO_MODELS[task].from_pretrained(source, config=config, **where)


def load_checkpoint(folder: str, task: str) -> PreTrainedModel:
    """Load a trained model of a task from a local folder.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the checkpoint must be a folder; received {folder}, which does not exist.")
    return load_pretrained(folder, task)


def load_network(source: str, task: str) -> PreTrainedModel:
    """Load a network from its folder or repository; of a ticket, the network that it starts from.

    Raises:
        FileNotFoundError: There is neither a model nor a ticket.
        HubError: The Hub cannot be reached.
    """
    if not Path(source).is_dir():
        ask_hub(source, "a network must be a folder or repository of a model or ticket")
    folder = model_folder(source)  # from here on, what is missing is missing, and not out of reach
    try:
        return load_pretrained(folder, task)
    except OSError as missing:  # a ticket has a configuration, but its weights have another file name
        try:
            ticket = Ticket.from_pretrained(folder)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"a network must be a folder or repository of a model or ticket; received {source}: {missing}"
            ) from missing
    model = AUTO_MODELS[task].from_config(ticket.model_config, trust_remote_code=False)
    ticket.apply_(model)
    return model
