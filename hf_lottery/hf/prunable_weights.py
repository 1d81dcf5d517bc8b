"""prunable(): find the weights of a model that a mask may cover, by name."""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..networks.computed import REMEDY, computed_names
from ..networks.display import TableDict, first_names
from ..networks.names import adapter_weights, base_modules, base_of, named_weights, plain_name, replaced_weights
from ..networks.numbers import check_plain
from ..networks.selection import Patterns, near_names, select_names

_LAYERS = {nn.Linear: "Linear", nn.Conv1d: "Conv1d", nn.Conv2d: "Conv2d", nn.Conv3d: "Conv3d", Conv1D: "Conv1D"}
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Prunable(TableDict[nn.Parameter]):
    """Parameter name -> parameter, in the model's order; what :func:`prunable` returns. Prints as a table.

    Attributes:
        kinds: Parameter name -> ``"Linear"``, ``"Conv2d"``, ``"Conv1D"``, ``"MultiheadAttention"``, ``"experts"`` ...
        head: Names of the modules that are the model's task head; empty when the model does not say.
        computed: Name -> module of the selected weights that are left out because the module computes them from other
            parameters, as under ``torch.nn.utils.prune`` or a weight norm.
    """

    header = ("name", "shape", "weights", "kind")

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        kinds: Mapping[str, str],
        *,
        head: Sequence[str] = (),
        computed: Mapping[str, nn.Module] = types.MappingProxyType({}),
    ):
        super().__init__(parameters)
        self.kinds = dict(kinds)
        self.head = tuple(head)
        self.computed = dict(computed)

    @property
    def weights(self) -> int:
        """Number of weights covered."""
        return sum(parameter.numel() for parameter in self.values())

    def row(self, name: str, value: nn.Parameter) -> Sequence[str]:
        return name, str(list(value.shape)), f"{value.numel():,}", self.kinds[name]

    def __repr__(self) -> str:
        left_out = [part for part in self.head if not any(name.startswith(f"{part}.") for name in self)]
        head = first_names(left_out) if self.head else "none known"
        total = f"parameters: {len(self)}, weights: {self.weights:,}"
        return f"{super().__repr__()}\n{total}\ntask head left out: {head}"


def prunable(model: nn.Module, *, include: Patterns | None = None, exclude: Patterns | None = None) -> Prunable:
    """Find the weights of a model that a mask may cover.

    These are the weight matrices of linear layers, convolutions (not transposed), GPT-2's ``Conv1D``,
    ``nn.MultiheadAttention`` and stacked experts. Norms, biases, embeddings and weights that are tied to one,
    positional tables, routers of mixtures of experts and adapters of PEFT are never covered, nor weights that a module
    computes from other parameters: parametrized ones, those with a weight or spectral norm, and those under
    ``torch.nn.utils.prune``. The task head, which a new task replaces, is left out unless ``include`` selects it.

    Args:
        model: Any module, also a compiled or data-parallel one. Its task head is known if it has the API of
            ``PreTrainedModel``: everything outside ``base_model``, and ``get_output_embeddings()``. Of a PEFT model,
            the weights of its base are returned, under the names that they have without PEFT; modules of which PEFT
            trains a copy (``modules_to_save``) are left out.
        include: Names or regular expressions, searched for in the names of all of these weights *and the task
            head's*. ``".*"`` selects everything with the head. By default everything but the head is selected.
        exclude: Names or regular expressions of the weights to leave out again.

    Returns:
        Parameter name -> parameter, with the names and order of ``named_parameters()`` (a tied weight once), without
        the prefixes of wrappers.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: A pattern is malformed or matches no such weight, no weight remains, or a weight is quantised or in
            a sparse layout.

    Warns:
        UserWarning: Selected weights are left out because they are computed from other parameters, or because PEFT
            trains a copy of them. Or weights are frozen in a model without adapters; they are covered all the same.

    Example:
        >>> print(prunable(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)), exclude="2"))
        name      shape         weights  kind
        0.weight  [8, 3, 3, 3]      216  Conv2d
        parameters: 1, weights: 216
        task head left out: none known

    Reference:
        Chen et al. (2020), *The Lottery Ticket Hypothesis for Pre-trained BERT Networks*, arXiv:2007.12223, who
        also leave out the head; they prune BERT's embeddings, we do not.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module; received {type(model).__name__}. Load it first.")
    base = base_of(model)
    head = _head(base)
    head_ids = {id(parameter) for module in head.values() for parameter in module.parameters()}
    found, kinds, computed = _find(base)
    if not found:
        raise ValueError(
            "the model must have weights of linear layers, convolutions, attention or experts; received "
            f"{type(base).__name__} without any. Parametrized weights do not count: remove the parametrizations. "
            "Nor do complex ones."
        )
    in_head = {name for name in (*found, *computed) if any(name.startswith(f"{part}.") for part in head)}
    in_head |= {name for name, parameter in found.items() if id(parameter) in head_ids}  # under another name as well
    chosen = select_names(
        [*found, *computed], include=include, exclude=exclude, what="a prunable weight",
        default=(found.keys() | computed.keys()) - in_head, hint=lambda part: _hint(part, found, base),
    )  # fmt: skip
    left_out = {name: computed[name] for name in chosen if name in computed}
    replaced = replaced_weights(base)
    selected = [name for name in chosen if name in found and name not in replaced]
    check_plain({name: found[name] for name in selected})
    _warn_of_left_out([*left_out], [name for name in chosen if name in replaced])
    if not adapter_weights(model):
        _warn_of_frozen([name for name in selected if not found[name].requires_grad])
    if not selected:
        raise ValueError(
            f"the selection must leave at least one weight; received include={include!r}, exclude={exclude!r}, which "
            f"leave none of {len(found)} parameters. Loosen them, or pass include='.*' to cover the task head too."
        )
    return Prunable(
        {name: found[name] for name in selected}, {name: kinds[name] for name in selected},
        head=[*head], computed=left_out,
    )  # fmt: skip


def _find(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str], dict[str, nn.Module]]:
    """Every prunable parameter and its kind, and the modules of weights that would be prunable as parameters.

    All are by name, and from one walk: PEFT replaces the parameters of an attention whenever its modules are listed.
    """
    routers, named, kinds, embeddings, computed = _routers(model), {}, {}, set(), {}
    for prefix, module in base_modules(model):
        at = f"{prefix}." if prefix else ""
        if module not in routers:
            computed |= {f"{at}{name}": module for name in computed_names(module) if _kind(module, name, 2)}
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.is_complex():
                continue
            named.setdefault(id(parameter), (f"{at}{name}", parameter))
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                embeddings.add(id(parameter))
            elif module not in routers and (kind := _kind(module, name, parameter.ndim)):
                kinds[id(parameter)] = kind
    found = {name: parameter for key, (name, parameter) in named.items() if key in kinds and key not in embeddings}
    return found, {name: kinds[id(parameter)] for name, parameter in found.items()}, computed


def _kind(module: nn.Module, name: str, ndim: int) -> str | None:
    if name == "weight" and (
        kind := next((kind for layer, kind in _LAYERS.items() if isinstance(module, layer)), None)
    ):
        return kind
    if name in _ATTENTION and isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention"
    # Every module of transformers that owns stacked experts has "Expert" in its class (MixtralExperts, DbrxExpertGLU,
    # JetMoeParallelExperts), and no other that owns a matrix does; biases and scales of experts are stacked to 2-d.
    if "Expert" in type(module).__name__ and ndim >= 2 and not re.search("bias|scale", name):
        return "experts"
    return None


def _warn_of_left_out(computed: Sequence[str], replaced: Sequence[str]) -> None:
    """Warn of selected weights that no mask may cover."""
    if computed:
        warnings.warn(
            f"a mask covers no weight that is computed from other parameters; left out: {first_names(computed)}. "
            f"{REMEDY}; or exclude it.",
            stacklevel=3,
        )
    if replaced:
        warnings.warn(
            f"a mask covers no weight of a module that PEFT trains a copy of; left out: {first_names(replaced)}. Take "
            "the module out of modules_to_save, or exclude it.",
            stacklevel=3,
        )


def _warn_of_frozen(names: Sequence[str]) -> None:
    if names:
        warnings.warn(
            f"{len(names)} frozen parameters are covered: {first_names(names)}. Training does not change them. "
            "Unfreeze them with requires_grad_(), or exclude them.",
            stacklevel=3,
        )


def _routers(model: nn.Module) -> set[nn.Module]:
    """Every module that belongs to a router."""
    routers: set[nn.Module] = set()
    for parent in model.modules():
        # Called "router" or of a Router class, anywhere; or called "gate", but only next to experts: elsewhere (D-FINE,
        # ESM) it is an ordinary layer, as `gate_proj` and Gemma 4's `per_layer_input_gate` are even in such a block.
        children = [(name, child, f"{name} {type(child).__name__}".lower()) for name, child in parent.named_children()]
        beside_experts = any("expert" in label for _, _, label in children)
        for name, child, label in children:
            if "router" in label or (beside_experts and re.fullmatch(r"gate|wg|\w*expert\w*_gate", name)):
                routers.update(child.modules())
    return routers


def _head(model: nn.Module) -> dict[str, nn.Module]:
    """The topmost modules of the task head by name, as the model's own API tells; empty if it has no such API."""
    if not (hasattr(model, "base_model") and hasattr(model, "get_output_embeddings")):
        return {}
    base, output = getattr(model, "base_model"), getattr(model, "get_output_embeddings")()  # noqa: B009
    head = dict(_outside(model, base)) if base is not model else {}
    known = {module for part in head.values() for module in part.modules()}
    with suppress(AttributeError, NotImplementedError):
        if getattr(model, "get_input_embeddings")() in known:  # noqa: B009
            head, known = {}, set()  # this is a body: DINOv3's `base_model` is its encoder, without the embeddings
    head.update((name, module) for name, module in model.named_modules() if module is output and module not in known)
    return {plain_name(name): module for name, module in head.items()}


def _outside(module: nn.Module, base: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # By path, not by set: DETR's heads are outside `base_model` and registered in its decoder as well.
    for name, child in module.named_children():
        if child is base:
            continue
        if any(part is base for part in child.modules()):
            yield from _outside(child, base, f"{prefix}{name}.")
        elif any(parameter.ndim > 1 for parameter in child.parameters()):
            yield f"{prefix}{name}", child


def _hint(pattern: str, found: Iterable[str], model: nn.Module) -> str:
    """What to do about a pattern that matches no prunable weight."""
    if other := next(filter(re.compile(pattern).search, named_weights(model, numbers=False)), None):
        never = "norms, biases, embeddings (and a head that is tied to one) and routers"
        return f"It matches {other!r}, but {never} are never prunable."
    return near_names(pattern, found)
