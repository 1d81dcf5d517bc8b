"""Sealed JSON files, written as docs/mask-format.md says, so that a test can change a value as an attacker would."""

import hashlib
import json


def sealed(values: dict) -> bytes:
    """The text of a file with these values, and a checksum that fits."""
    text = json.dumps({**{key: value for key, value in values.items() if key != "text_sha256"}, "text_sha256": ""})
    begin = text.removesuffix('"}')
    return f'{begin}{hashlib.sha256(begin.encode()).hexdigest()}"}}'.encode()


def change(path, function) -> None:
    """Change the values of a sealed file, with a checksum that fits."""
    path.write_bytes(sealed(function(json.loads(path.read_bytes()))))
