"""JSON files that anybody may have written: bounded when they are read, and sealed by a checksum of their own text.

A sealed file ends with the key ``text_sha256``, the SHA-256 of all that stands before its value, with newlines as
``\\n``. So one byte that was changed is found before the text is parsed. Since format version 2 of each kind of file,
the checksum must be there: a file that lost it is refused too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 16 * 2**20
_MOST_VALUES = 1_000_000  # counted as commas and brackets; up to 250 bytes of memory each
_MOST_UNPROVEN = 250_000  # without a checksum
_MOST_DEPTH = 64
_MOST_CHARACTERS = 2**16  # of one text
_MOST_NAME = 1024  # of one key
_SEALED_SINCE = 2
_SEAL = "text_sha256"
_END = re.compile(rb'"text_sha256"\s*:\s*"([0-9a-f]{64})"\s*\}\s*\Z')
_MOST_END = 512


def seal_json(values: Mapping[str, Any], *, what: str) -> bytes:
    """Return the text of a JSON file that carries its own checksum, for :func:`read_sealed`.

    Args:
        values: The values; ``format_version`` is among them.
        what: What they are, for the error message.

    Raises:
        ValueError: A reader would refuse the values: there are too many, too long or too deep ones, or two keys that
            are the same text.
    """
    end = '"\n}'
    text = json.dumps({**values, _SEAL: ""}, indent=1).removesuffix(end).encode()
    text += f"{_digest(text)}{end}\n".encode()
    _check_size(len(text), MOST_BYTES, what, ValueError)
    _parse(text, _MOST_VALUES, what, ValueError)
    return text


def read_sealed(path: Path, *, version: int, error: type[ValueError]) -> dict[str, Any]:
    """Read a file of :func:`seal_json`, or an older one without a checksum.

    Args:
        path: The file.
        version: The newest format version that can be read.
        error: The error to raise.

    Raises:
        ValueError: The file is malformed, too large, changed, or newer than this library; it is of the class ``error``.
    """
    data = _read(path, error)
    sealed = _END.search(data, max(0, len(data) - _MOST_END))
    # A seal that is not at the end belongs to a file that was changed; there is no need to parse it.
    if _digest(data[: sealed.start(1)]) != sealed[1].decode() if sealed else f'"{_SEAL}"'.encode() in data:
        raise error(_changed(path))
    values = _parse(data, _MOST_VALUES if sealed else _MOST_UNPROVEN, path, error)
    found = values.get("format_version")
    if type(found) is not int or found < 1:
        raise error(f"{path}: format_version must be a positive integer; received {found!r:.80}.")
    if found > version:
        raise error(
            f"{path}: format_version must be at most {version}; received {found!r:.80}. Install a newer hf_lottery."
        )
    if found >= _SEALED_SINCE and not sealed:
        raise error(_changed(path))
    values.pop(_SEAL, None)
    return values


def read_json(path: Path, *, error: type[ValueError]) -> dict[str, Any]:
    """Read a JSON object of a limited size, such as a configuration that another library wrote.

    Raises:
        ValueError: The file is malformed or too large; it is of the class ``error``.
    """
    return _parse(_read(path, error), _MOST_UNPROVEN, path, error)


def text_sha256(path: Path, *, error: type[ValueError]) -> str:
    """Return the SHA-256 of a text file of a limited size. It does not depend on how the system writes newlines."""
    return _digest(_read(path, error))


def _read(path: Path, error: type[ValueError]) -> bytes:
    _check_size(path.stat().st_size, MOST_BYTES, path, error)
    return path.read_bytes()


def _check_size(size: int, most: int, what: object, error: type[ValueError]) -> None:
    if size > most:
        raise error(f"{what} must be at most {most:,} bytes; received {size:,}.")


def _parse(data: bytes, most_values: int, what: object, error: type[ValueError]) -> dict[str, Any]:
    # Counted before anything is built, as three bytes of text may take seventy of memory.
    if not data.isascii():  # then one character takes up to four bytes
        _check_size(len(data), MOST_BYTES // 4, f"{what}, which is not ASCII,", error)
    if (values := sum(map(data.count, (b",", b"[", b"{")))) > most_values:
        raise error(f"{what} must hold at most {most_values:,} values; received about {values:,}.")
    try:
        content = json.loads(data.decode(), object_pairs_hook=_with_unique_keys)
    except (ValueError, RecursionError) as cause:
        raise error(f"{what} must be JSON; received: {cause!s:.200}.") from cause
    if not isinstance(content, dict):
        raise error(f"{what} must hold a JSON object; received {type(content).__name__}.")
    if fault := _beyond_bounds(content):
        raise error(f"{what} must hold {fault}.")
    return content


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.80} twice")
    return found


def _beyond_bounds(content: Any) -> str:
    """Say which bound of texts or depth a value passes; empty if none."""
    level, depth = [content], 0
    while level:
        if depth > _MOST_DEPTH:
            return f"values at most {_MOST_DEPTH} deep; received deeper ones"
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if (longest := max(map(len, value), default=0)) > _MOST_NAME:
                    return f"names of at most {_MOST_NAME:,} characters; received one of {longest:,}"
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str) and len(value) > _MOST_CHARACTERS:
                return f"texts of at most {_MOST_CHARACTERS:,} characters; received one of {len(value):,}"
        level, depth = below, depth + 1
    return ""


def _digest(text: bytes) -> str:
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()


def _changed(path: Path) -> str:
    return (
        f"{path} must be as it was written, down to its checksum; received a file that was changed. Restore it from a "
        "copy or download it again; to change it on purpose, load the object, change it, and save it again."
    )
