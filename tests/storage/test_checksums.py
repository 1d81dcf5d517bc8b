"""Files are those that were written, or an error names the one that is not."""

import json

import pytest

from hf_lottery.storage.checksums import (
    DamagedFileError,
    check_files,
    hash_files,
    read_record,
    sealed_record,
    sha256_of,
)

VALUES = {"number": 0.1, "nested": {"b": [1, None], "a": "text"}, "not a number": float("inf")}


def test_a_sealed_file_is_read_back(tmp_path):
    (tmp_path / "a.json").write_bytes(sealed_record(VALUES))
    assert read_record(tmp_path / "a.json") == {"format_version": 2, **VALUES}


def test_no_flipped_bit_and_no_cut_gives_other_values(tmp_path):
    file, data = tmp_path / "a.json", sealed_record(VALUES)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place * 5 % 8
        file.write_bytes(bytes(changed))
        with pytest.raises(DamagedFileError, match="a.json"):
            read_record(file)
    for length in range(0, len(data) - 1, 7):  # the last byte ends the line
        file.write_bytes(data[:length])
        with pytest.raises(DamagedFileError, match="a.json"):
            read_record(file)


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"a": 1}', json.dumps({"format_version": 2, "a": 1})])
def test_a_file_without_a_seal_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedFileError):
        read_record(tmp_path / "a.json")


def test_files_are_checked_by_their_bytes(tmp_path):
    inner = tmp_path / "deep/er"
    inner.mkdir(parents=True)
    inside, beside = inner / "weights", tmp_path / "beside"
    inside.write_bytes(b"1" * 3_000_000)  # more than is read at once
    beside.write_bytes(b"2")
    hashes = hash_files(tmp_path / "deep", [inside, beside])
    assert hashes == {"../beside": sha256_of(beside), "er/weights": sha256_of(inside)}
    check_files(tmp_path / "deep", hashes)
    inside.write_bytes(b"1" * 2_999_999 + b"3")
    with pytest.raises(DamagedFileError, match=r"weights must be as it was written; received other bytes, with sha256"):
        check_files(tmp_path / "deep", hashes)
    inside.write_bytes(b"1" * 3_000_000)
    beside.unlink()
    with pytest.raises(DamagedFileError, match=r"/beside must be as it was written; received no such file"):
        check_files(tmp_path / "deep", hashes)
