"""The files of a tokenizer that travel with a ticket: all that the tokenizers of transformers write, and no code."""

import re
from pathlib import Path

import pytest
import transformers
from small_tickets import mask, ticket
from transformers import AutoTokenizer, PhobertTokenizer

from hf_lottery import Ticket
from hf_lottery.hf.hub.processing import processing_files, stage_processing


def test_every_vocabulary_of_transformers_may_travel(tmp_path):
    folder = Path(transformers.__file__).parent / "models"
    texts = [path.read_text() for path in folder.glob("*/tokenization*.py")]
    found = [re.search(r"^VOCAB_FILES_NAMES = \{(.*?)\}", text, re.M | re.S) for text in texts]
    names = {name for match in found if match for name in re.findall(r': "([^"]+\.[^"]+)"', match[1])}
    assert {"source.spm", "bpe.codes", "spiece.model", "vocab.json", "merges.txt"} <= names
    assert stage_processing(tmp_path, dict.fromkeys(names, b"{}")).keys() == names


def test_a_tokenizer_with_files_of_its_own_is_loaded_from_a_ticket(hub, tmp_path):
    (tmp_path / "vocab.txt").write_text("go 1\nod 2\n")
    (tmp_path / "bpe.codes").write_text("#version\ng o 1\n")
    tokenizer = PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    Ticket(mask(), ticket().start, processing=processing_files(tokenizer)).push_to_hub("alice/t")
    Ticket.from_pretrained("alice/t").save_pretrained(tmp_path / "t")
    for source in ("alice/t", tmp_path / "t"):
        again = AutoTokenizer.from_pretrained(source, use_fast=False)
        assert type(again) is PhobertTokenizer and again("go")["input_ids"] == tokenizer("go")["input_ids"]


def test_what_cannot_travel_is_said():
    class Odd:
        def save_pretrained(self, folder):
            for name in ("tokenizer_config.json", "code.py", "words.pkl"):
                (Path(folder) / name).write_text("{}")
            (Path(folder) / "voices").mkdir()

    with pytest.warns(UserWarning, match="Odd also writes code.py, voices, words.pkl, which is left out: only plain"):
        assert processing_files(Odd()) == {"tokenizer_config.json": b"{}"}
