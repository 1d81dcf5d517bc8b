"""Texts: classification and causal language modelling."""

import pytest
from transformers import PreTrainedTokenizerFast


def test_csv_texts_are_tokenised_and_padded(load, reviews, tokenizer):
    loaded = load(reviews, "text-classification", model=tokenizer, max_length=3)
    assert loaded.label_names == ("0", "1") and loaded.pad_token_id is None
    assert set(loaded.config_kwargs) == {"id2label", "label2id"}
    assert (len(loaded.train), len(loaded.eval)) == (20, 2)
    assert loaded.train[3]["input_ids"] == [3, 3, 3] and loaded.train[3]["labels"] == 1
    batch = loaded.data_collator([loaded.train[i] for i in range(2)])
    assert batch["input_ids"].tolist() == [[6, 3, 5], [4, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    few = load(reviews, "text-classification", model=tokenizer, max_train_samples=15)
    right = {(6, 3, 5): 1, (4,): 0, (7, 4, 5): 0, (3, 3, 3, 3): 1}
    assert len(few.train) == 15 and all(right[tuple(item["input_ids"])] == item["labels"] for item in few.train)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(load, reviews, tokenizer, tmp_path, caplog):
    loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    loaded.pad_token = None
    loaded.save_pretrained(tmp_path / "unpadded")
    texts = load(reviews, "text-classification", model=str(tmp_path / "unpadded"))
    assert texts.config_kwargs["pad_token_id"] == 2 and "no padding token" in caplog.text
    assert texts.data_collator([texts.train[i] for i in range(2)])["input_ids"].tolist() == [[6, 3, 5], [4, 2, 2]]


def test_causal_lm_joins_texts_and_cuts_them_into_blocks(load, reviews, tokenizer):
    loaded = load(reviews, "causal-lm", model=tokenizer, block_size=4)
    stream = [6, 3, 5, 4, 7, 4, 5, 3, 3, 3, 3] * 5
    assert [item["input_ids"] for item in loaded.train] == [stream[at : at + 4] for at in range(0, 52, 4)]
    assert loaded.train["labels"][:] == loaded.train["input_ids"][:]
    batch = loaded.data_collator([loaded.train[0], loaded.train[1]])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 4) and batch["attention_mask"].all()
    assert loaded.num_labels == 0 and loaded.config_kwargs == {}
    assert len(load(reviews, "causal-lm", model=tokenizer, block_size=4, max_train_samples=3).train) == 3
    both = load(reviews, "causal-lm", model=tokenizer, dataset_test_split="train")
    assert len(both.train[0]["input_ids"]) == 16  # the tokenizer's model_max_length


def test_hidden_labels_are_refused(load, reviews, tokenizer):
    (reviews / "test.csv").write_text("text,label\ngood,-1\n")
    with pytest.raises(ValueError, match=r"labels in column 'label' must be classes .*; received -1\. .*test_split"):
        load(reviews, "text-classification", model=tokenizer)


def test_text_must_have_a_tokenizer_and_fill_a_block(load, reviews, tokenizer):
    with pytest.raises(ValueError, match=r"causal-lm must have a tokenizer; received model_name_or_path=None\."):
        load(reviews, "causal-lm")
    with pytest.raises(ValueError, match=r"a split must fill a block of 99 tokens; received 20 texts\. Lower"):
        load(reviews, "causal-lm", model=tokenizer, block_size=99)
