"""The configuration of a model, read from a file that anybody may have written: bounded, and without anybody's code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...storage.encoding import MaskFileError
from ...storage.json_files import read_json

# What names classes, files or kernels outside of the library. A saved configuration needs none of it.
_KERNELS = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
)  # fmt: skip
_OUTSIDE = frozenset([*_KERNELS, "auto_map", "custom_pipelines", "configuration_files", "kernel_config"])


def read_model_config(path: Path) -> PreTrainedConfig:
    """Read the ``config.json`` of a model whose class the transformers library has, or whose class was registered.

    Nothing is imported or downloaded, and nobody is asked: what names code elsewhere is left out.

    Raises:
        MaskFileError: The file is malformed or too large, or its model type is unknown.
    """
    values = read_json(path, error=MaskFileError)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = " and names code of its own, which is never run" if "auto_map" in values else ""
        raise MaskFileError(
            f"{path} must name a model_type that transformers knows; received {kind!r:.80}{code}. Install the version "
            "of transformers that has it, or import the module that calls AutoConfig.register for it."
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(_inside(values))
    except Exception as error:  # each class checks its values in its own way
        cause = f"{type(error).__name__}: {error!s:.200}"
        raise MaskFileError(f"{path} must be a configuration of {kind}; received one that fails: {cause}.") from error


def check_no_kernels(config: PreTrainedConfig | Mapping[str, Any], source: object) -> None:
    """Refuse a configuration whose attention or experts are a kernel of a repository, which is code.

    Raises:
        ValueError: It names one.
    """
    values = config if isinstance(config, Mapping) else vars(config)
    for key, value in values.items():
        if isinstance(value, Mapping | PreTrainedConfig):
            check_no_kernels(value, source)
        elif key in _KERNELS and isinstance(value, str) and "/" in value:
            raise ValueError(
                f"the configuration of {source} must not name code of a repository; received {key}={value!r:.80}. "
                "Remove it from config.json."
            )


def _inside(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _inside(value) for key, value in values.items() if key not in _OUTSIDE}
    return [_inside(value) for value in values] if isinstance(values, list) else values
