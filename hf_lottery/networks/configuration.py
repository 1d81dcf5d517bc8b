"""Configuration: what of a model's configuration decides its function in evaluation, and how two of them differ.

Models with the same names and shapes of weights can compute different functions: heads, activations, epsilons and
rotary angles are in no shape. transformers is not imported: a configuration is any object with ``to_dict``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from torch import nn

from .names import base_of

# The only list of what cannot change the function in evaluation. A name is ignored wherever it stands, with all below.
_IGNORED = re.compile(
    "|".join((
        # names and versions
        r"_?name_or_path|_commit_hash|\w*transformers_version|architectures|auto_map|custom_pipelines|tokenizer_class",
        r"finetuning_task|task_specific_params|\w*_diffusers_version|_class_name",
        # labels: their number is in the shape of the head
        r"id2label|label2id|num_labels|label_names|problem_type",
        # what is returned beside the outputs
        r"(use_)?return_dict|output_attentions|output_hidden_states|output_router_logits|torchscript",
        # how it is computed
        r"_?attn_impl(ementation)?(_\w+)?|_experts_implementation\w*|_?(use_)?flash_attn\w*|use_flash_attention\w*",
        r"deterministic_flash_attn|fused_attn|chunk_size_feed_forward|pretraining_tp|reference_compile",
        r"dtype|torch_dtype|use_bfloat16|use_cache|cache_implementation",
        # generation
        r"do_sample|num_beams|num_beam_groups|top_k|top_p|typical_p|min_length|early_stopping|length_penalty|bad_words_ids",
        r"repetition_penalty|diversity_penalty|(encoder_)?no_repeat_ngram_size|num_return_sequences|(begin_)?suppress_tokens",
        r"forced_(bos|eos)_token_id|remove_invalid_values|exponential_decay_length_penalty|output_scores",
        # initial values
        r"(\w+_)?initializer_(range|factor|std|cutoff_factor)|(embed_)?init_(std|xavier_std|device)",
        # training; the dropouts that are excepted act in evaluation too
        r"(?!\w*(token|prenet|lm)_dropout)\w*(dropout|pdrop|layerdrop|droppath|drop_path_rate|drop_prob)\w*",
        r"(\w+_)?drop_rate|drop_(connect|mlp|conv_encoder)_rate|grad(ient)?_checkpointing|label_smoothing(_factor)?",
        r"apply_spec_augment|mask_(time|feature)_(prob|length|min_masks)|ctc_loss_reduction|ctc_zero_infinity",
        r"\w+_loss_(coef|coefficient|weight)|router_jitter_noise|tf_legacy_loss",
    ))
)  # fmt: skip
# What a key that other versions of the class have is taken for where it is not set.
_UNSET = {"position_embedding_type": "absolute"}


def configuration_of(model: nn.Module) -> Any:
    """Return the configuration of a model, also inside wrappers; None if it has none with ``to_dict``.

    Other objects under this name may hold the settings of one's own training script, which are no part of the network.
    """
    config = getattr(base_of(model), "config", None)
    return None if isinstance(config, Mapping) or _as_dict(config) is None else config


def decides(name: str) -> bool:
    """Tell whether a setting of this name can change the function in evaluation."""
    return not _IGNORED.fullmatch(name)


def deciding(config: Any) -> dict[str, Any]:
    """Return the values of a configuration that can change the function in evaluation.

    Args:
        config: An object with ``to_dict``, or a mapping.

    Returns:
        Name -> value in JSON's terms. Nested configurations are flat: ``text_config.num_attention_heads``.
    """
    return dict(_flat(_as_dict(config) or {}))


def configuration_differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, like: Any, where: tuple[str, str]
) -> list[str]:
    """List how two configurations differ.

    Args:
        theirs: One of them, from :func:`deciding`.
        ours: The other one.
        like: A configuration of the class whose defaults hold where only one of them has a value, because another
            version of a library wrote it. None if there is no such class.
        where: How to say which is which, such as ``("in the ticket", "here")``.
    """
    defaults = _defaults(like) if theirs.keys() != ours.keys() else {}
    found = []
    for name in dict.fromkeys((*theirs, *ours)):
        values = [_value(name, side, defaults) for side in (theirs, ours)]
        known = name in defaults or (name in theirs and name in ours)
        if not _same(name, *values, known=known):
            found.append(f"{name} is {_short(values[0])} {where[0]}, {_short(values[1])} {where[1]}")
    return found


def _defaults(config: Any) -> dict[str, Any]:
    """Return what the class of a configuration sets where nothing is said."""
    try:
        return {} if config is None else deciding(type(config)())
    except Exception:  # some classes need arguments, and any of them may be checked
        return {}


def _value(name: str, side: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """Return a value; None for the number of a token beyond the vocabulary, as small models inherit from a default."""
    value = side.get(name, defaults.get(name))
    before, dot, last = name.rpartition(".")
    words = side.get(f"{before}{dot}vocab_size")
    beyond = last.endswith("_token_id") and isinstance(value, int) and isinstance(words, int) and value >= words
    return None if beyond else value


def _same(name: str, a: Any, b: Any, *, known: bool) -> bool:
    if a == b or (a != a and b != b):  # NaN differs from itself
        return True
    last = name.rpartition(".")[2]
    if last.endswith("_token_id") and (a is None or b is None):
        return True  # the Trainer sets those that the tokenizer has
    if known:
        return False
    given = b if a is None else a
    return given in (None, False, "", []) or _UNSET.get(last) == given


def _flat(values: Mapping[Any, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if not decides(str(key)):
            continue
        if (inner := _as_dict(value)) is not None:
            yield from _flat(inner, f"{before}{key}.")
        else:
            yield f"{before}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """Return a value as it comes back from a JSON file."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [_plain(item) for item in items]
    return dict(_flat(inner)) if (inner := _as_dict(value)) is not None else str(value)


def _as_dict(config: Any) -> dict[Any, Any] | None:
    if not isinstance(config, Mapping) and callable(getattr(config, "to_dict", None)):
        config = config.to_dict()
    return dict(config) if isinstance(config, Mapping) else None


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
