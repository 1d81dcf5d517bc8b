"""Selection: the one way to choose names (of parameters, groups or layers) by regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

Patterns = str | Iterable[str]


def select_names(
    names: Iterable[str],
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    what: str = "a parameter",
    default: Iterable[str] | None = None,
    error: type[ValueError] = ValueError,
    hint: Callable[[str], str] | None = None,
    optional: bool = False,
) -> list[str]:
    """Choose names by regular expression.

    A pattern that is itself one of the names selects only that name. Any other pattern is a regular expression that may
    match anywhere in a name.

    Args:
        names: The names to choose from.
        include: A pattern, or several; a name is chosen if one of them matches. None selects ``default``.
        exclude: A pattern, or several, of the names to take away again.
        what: The kind of thing that has the names, for the error messages.
        default: The names that ``include=None`` selects; by default all of them.
        error: The class of the error to raise.
        hint: Returns the end of the error message, which says what to do, for a pattern that matches nothing.
        optional: Whether a pattern may match nothing.

    Returns:
        The chosen names in the order of ``names``. The list may be empty if ``exclude`` takes all of them away.

    Raises:
        ValueError: A pattern is empty, is not a regular expression, or matches nothing although it must.

    Example:
        >>> select_names(["conv.weight", "fc.weight", "fc.bias"], include=r"weight$", exclude="conv")
        ['fc.weight']
    """
    names = list(names)
    chosen = set(names if default is None else default)
    if include is not None:
        chosen = _matching("include", include, names, what, error, hint, optional)
    if exclude is not None:
        chosen -= _matching("exclude", exclude, names, what, error, hint, optional)
    return [name for name in names if name in chosen]


def _matching(option: str, patterns: Patterns, names: list[str], what: str, error, hint, optional: bool) -> set[str]:
    """The names that one of the patterns matches; every pattern must match one, unless that is optional."""
    known, matching = set(names), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not pattern:
            raise error(f"{option} must be a regular expression; received an empty one. Use '.*' to match all.")
        if pattern in known:
            matching.add(pattern)
            continue
        try:
            search = re.compile(pattern).search
        except re.error as wrong:
            raise error(
                f"{option} must be a valid regular expression; received {pattern!r} ({wrong}). "
                "Escape special characters with re.escape."
            ) from None
        hits = {name for name in names if search(name)}
        if not hits and not optional:
            way_out = hint(pattern) if hint else near_names(pattern, names)
            raise error(f"{option} must match the name of {what}; received {pattern!r}, which matches none. {way_out}")
        matching |= hits
    return matching


def near_names(pattern: str, names: Iterable[str]) -> str:
    """Return a sentence with the names that are most like a pattern, or with the first name if none is."""
    names = list(names)
    near = difflib.get_close_matches(pattern, {*names, *".".join(names).split(".")}, n=3)
    return f"Near names: {', '.join(near)}." if near else f"The names are like {next(iter(names), 'none')!r}."
