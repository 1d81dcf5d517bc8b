"""Passes: the ways to run a model that reach what a plain pass in evaluation mode does not."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..networks.generators import kept_generators
from ..networks.modes import restored_modes
from .kept import unchanged

_ATEN = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Pass:
    """One way to run a model.

    Attributes:
        training: Whether the model is in training mode. Random numbers are then replaced by their means, so that
            dropout keeps everything, and what is drawn otherwise is the same each time.
        module: Name of a module that is given one more argument.
        argument: Name of that argument.
        value: Its value.
    """

    training: bool = False
    module: str = ""
    argument: str | None = None
    value: Tensor | None = None

    def __str__(self) -> str:
        if self.argument is None:
            return "in training mode" if self.training else "in evaluation mode"
        assert self.value is not None
        return f"with {self.argument} {tuple(self.value.shape)} given to {self.module or 'the model'}"

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Prepare a model for this pass; afterwards the model and the random state are as before."""
        if self.argument is not None:
            hook = model.get_submodule(self.module).register_forward_pre_hook(self._give, with_kwargs=True)
            try:
                yield
            finally:
                hook.remove()
        elif self.training:
            with restored_modes(model), unchanged(model), _same_random_numbers(), _Means():
                model.train()
                yield
        else:
            yield

    def _give(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        assert self.argument is not None and self.value is not None
        floats = next((p.dtype for p in module.parameters() if p.is_floating_point()), self.value.dtype)
        value = self.value.to(floats) if self.value.is_floating_point() else self.value
        bound.arguments[self.argument] = value
        return bound.args, bound.kwargs


EVALUATION = Pass()
TRAINING = Pass(training=True)


class _Means(TorchDispatchMode):
    """Gives the mean of what would be drawn at random: noise per unit would otherwise not follow a permutation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        given |= dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        name = func._schema.name.removeprefix("aten::")
        if name == "native_dropout":
            return args[0], torch.ones_like(args[0], dtype=torch.bool)
        if func is _ATEN.bernoulli_.float:
            return args[0].fill_(given["p"])
        if name in ("uniform_", "normal_", "exponential_"):
            mean = {
                "uniform_": lambda: (given["from"] + given["to"]) / 2,
                "normal_": lambda: given["mean"],
                "exponential_": lambda: 1 / given["lambd"],
            }[name]()
            return args[0].fill_(mean)
        out = func(*args, **kwargs)
        if name in ("rand", "rand_like", "randn", "randn_like"):
            out.fill_(0.0 if "randn" in name else 0.5)
        return out


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Draw the same numbers in every block, and go on afterwards as if there had been none."""
    with kept_generators():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield
