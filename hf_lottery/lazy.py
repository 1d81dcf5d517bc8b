"""Names of a package whose modules are imported when they are first used (PEP 562), so that a package imports fast."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str,
    names: Mapping[str, Sequence[str]],
    *,
    modules: Sequence[str] = (),
    deprecated: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions ``__getattr__`` and ``__dir__`` of a package.

    The package imports the same names under ``TYPE_CHECKING``, where type checkers and editors read them, and lists
    them in ``__all__``.

    Args:
        package: The package's ``__name__``.
        names: Module -> the names that the package takes from it, such as ``{"masks.mask": ["Mask"]}``.
        modules: Modules of the package that are attributes of it before anybody has imported them.
        deprecated: Old name -> the full name to use instead, such as ``{"Line": "hf_lottery.connectivity.Barrier"}``.
            The old name still works and warns; the package lists it nowhere. It stays for one minor release.
    """
    where = {name: module for module, found in names.items() for name in found}

    def __getattr__(name: str) -> Any:
        if deprecated and name in deprecated:
            new = deprecated[name]
            text = f"{package}.{name} will be removed in the next minor release: use {new} instead."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return pkgutil.resolve_name(new)
        if name in modules:
            return import_module(f".{name}", package)  # which makes it an attribute
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{where[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted([*sys.modules[package].__all__, *modules])

    return __getattr__, __dir__
