"""The Auto class of transformers that loads a model by its configuration."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto


def auto_class(kind: type[PreTrainedModel]) -> str | None:
    """Return the name of the Auto class that loads a model class by its configuration; None if none does."""
    names = [name for name in vars(modeling_auto) if name.startswith("AutoModel")]
    for name in sorted(names, key=lambda name: name == "AutoModelForPreTraining"):  # which also has the causal models
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if mapping is not None and kind.config_class in mapping:
            known = mapping[kind.config_class]
            if kind is (known[0] if isinstance(known, tuple | list) else known):
                return name
    return None
