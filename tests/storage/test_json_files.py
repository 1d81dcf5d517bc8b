"""JSON files: sealed by a checksum of their own text, and bounded in every direction before and after parsing."""

import json
import re
import time
import tracemalloc

import pytest
from sealed_files import sealed

from hf_lottery.storage.json_files import read_json, read_sealed, seal_json, text_sha256

VALUES = {"format_version": 2, "name": "é\n", "list": [1, 2.5, None, True], "nested": {"a": {}}, "nan": "x"}


class OwnError(ValueError):
    """The error that a caller asks for."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(seal_json(VALUES, what="values"))
    return path


def read(path, version=2):
    return read_sealed(path, version=version, error=OwnError)


def test_what_is_sealed_is_read(path):
    assert read(path) == VALUES
    path.write_bytes(sealed(VALUES))  # another writer, who knows the format
    assert read(path) == VALUES
    path.write_bytes(seal_json(VALUES, what="values").replace(b"\n", b"\r\n"))
    assert read(path) == VALUES and text_sha256(path, error=OwnError) == text_sha256(path, error=OwnError)


def test_every_byte_counts(path):
    data = path.read_bytes()
    end = data.rindex(b'"')
    for at in range(len(data)):
        for bit in (1, 32):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                found = read(path)
                assert at > end and found == VALUES  # white space after the checksum
            except OwnError as error:
                assert re.search("must be as it was written|must be JSON", str(error))


def test_a_seal_cannot_be_taken_off(path):
    values = json.loads(path.read_bytes())
    without = {key: value for key, value in values.items() if key != "text_sha256"}
    for changed in (without, {**values, "more": 1}, {"text_sha256": values["text_sha256"], **without}):
        path.write_text(json.dumps(changed))
        with pytest.raises(OwnError, match="must be as it was written.*load the object, change it, and save it again"):
            read(path)
    path.write_text(json.dumps({**without, "format_version": 1}))  # as before there were seals
    assert read(path) == {**VALUES, "format_version": 1}


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_version_is_a_positive_integer(path, version):
    path.write_bytes(sealed({**VALUES, "format_version": version}))
    with pytest.raises(OwnError, match="format_version must be a positive integer; received"):
        read(path)


def test_a_newer_version(path):
    for version in (3, 10**400):
        path.write_bytes(sealed({**VALUES, "format_version": version}))
        with pytest.raises(OwnError, match="must be at most 2; received .*Install a newer") as raised:
            read(path)
        assert len(str(raised.value)) < 400


BEYOND = {
    "bytes": (b'{"a": "' + b"x" * 2**24 + b'"}', "must be at most 16,777,216 bytes; received 16,777,225"),
    "emoji": ('{"a": "' + "\U0001f600" * 2**20 + '"}', "which is not ASCII, must be at most 4,194,304 bytes"),
    "values": ("[" + "[]," * 200_000 + "0]", "must hold at most 250,000 values; received about 400,001"),
    "depth": ('{"a": ' * 66 + "0" + "}" * 66, "must hold values at most 64 deep"),
    "no end": ("[" * 10**5, "must be JSON"),
    "objects": ('{"a":' * 10**5, "must be JSON"),
    "text": ('{"a": "' + "x" * 70_000 + '"}', "texts of at most 65,536 characters; received one of 70,000"),
    "name": ('{"' + "x" * 2000 + '": 1}', "names of at most 1,024 characters; received one of 2,000"),
    "twice": ('{"b": 1, "a": {"c": 1, "d": 2, "c": 1}}', "must be JSON; received: the key 'c' twice"),
    "often": ("{" + '"a": 1,' * 20_000 + '"b": 1}', "must be JSON; received: the key 'a' twice"),
    "digits": ('{"a": ' + "1" * 5000 + "}", "must be JSON"),
    "latin-1": (b'{"a": "\xe9"}', "must be JSON"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "must be JSON"),
    "mark": (b'\xef\xbb\xbf{"a": 1}', "must be JSON"),
    "null": (b'{"a": 1}\0', "must be JSON"),
    "list": ("[1]", "must hold a JSON object; received list"),
    "empty": ("", "must be JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BEYOND)
def test_bounds(path, case):
    text, message = BEYOND[case]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in (read, lambda path: read_json(path, error=OwnError)):
        tracemalloc.start()
        begin = time.process_time()
        try:
            with pytest.raises(OwnError, match=message) as raised:
                reader(path)
            seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert str(path) in str(raised.value) and len(str(raised.value)) < 500
        assert seconds < 2 and peak < 64 * 2**20


def test_what_no_reader_would_take_is_not_written():
    deep: dict = {}
    for _ in range(70):
        deep = {"a": deep}
    for value, message in ((deep, "64 deep"), ("x" * 70_000, "65,536 char"), ({1: 1, "1": 2}, "key '1' twice")):
        with pytest.raises(ValueError, match=f"the values must .*{message}"):
            seal_json({"format_version": 2, "a": value}, what="the values")


def test_a_foreign_file_needs_no_version(path):
    path.write_text('{"model_type": "vit", "scale": NaN}')
    assert read_json(path, error=OwnError)["model_type"] == "vit"
