"""Texts for a classifier or a causal language model, as tokens."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

from transformers import DataCollatorWithPadding, default_data_collator

from .columns import draw_rows, find_column, read_labels
from .data import Data, DataArguments

logger = logging.getLogger(__name__)

_TYPES, _USUAL_NAMES = ("string", "large_string"), ("text", "sentence", "content")


def prepare_labelled_texts(args: DataArguments, train: Any, held_out: Any, seed: int, tokenizer: Any) -> Data:
    """Prepare two splits of texts with labels for a classifier.

    Args:
        args: Columns, numbers of samples, the length that texts are cut to.
        train: The split to train on.
        held_out: The split to evaluate on.
        seed: Draws the samples.
        tokenizer: The tokenizer of the model. Without a padding token it pads with its end of text.

    Raises:
        ValueError: A column is missing, or the test split has labels that the train split does not have.
    """
    column = find_column(args.text_column_name, "text", (train, held_out), _TYPES, _USUAL_NAMES)
    names, *labels = read_labels(args, train, held_out)
    pad_token_id = None
    if tokenizer.pad_token is None:
        logger.warning("the tokenizer has no padding token: padding with its end of text, %r", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
        pad_token_id = tokenizer.pad_token_id

    def encode(batch: Any) -> Any:
        return tokenizer(batch[column], truncation=True, max_length=args.max_length)

    encoded = []
    for split, targets, count in zip(
        (train, held_out), labels, (args.max_train_samples, args.max_eval_samples), strict=True
    ):
        rows = draw_rows(targets, count, seed)
        tokens = split.select(rows).map(encode, batched=True, remove_columns=split.column_names)
        encoded.append(tokens.add_column("labels", targets[rows].tolist()))
    collator = DataCollatorWithPadding(tokenizer)
    return Data(encoded[0], encoded[1], collator, tokenizer, label_names=names, pad_token_id=pad_token_id)


def prepare_blocks(args: DataArguments, train: Any, held_out: Any, seed: int, tokenizer: Any) -> Data:
    """Prepare two splits of texts for a causal language model: texts are joined, and cut into blocks of equal length.

    Args:
        args: Columns, numbers of samples, tokens in a block.
        train: The split to train on.
        held_out: The split to evaluate on.
        seed: Draws the samples.
        tokenizer: The tokenizer of the model.

    Raises:
        ValueError: The column of text is missing, or a split fills no block.
    """
    column = find_column(args.text_column_name, "text", (train, held_out), _TYPES, _USUAL_NAMES)
    block = args.block_size or min(tokenizer.model_max_length, 1024)

    def encode(batch: Any) -> dict[str, list[list[int]]]:
        tokens = list(chain.from_iterable(tokenizer(batch[column])["input_ids"]))
        blocks = [tokens[at : at + block] for at in range(0, len(tokens) - block + 1, block)]
        return {"input_ids": blocks, "attention_mask": [[1] * block] * len(blocks), "labels": blocks}

    encoded = []
    for split, count in ((train, args.max_train_samples), (held_out, args.max_eval_samples)):
        # Texts are joined a thousand at a time; the end of each thousand that fills no block is dropped.
        blocks = split.map(encode, batched=True, remove_columns=split.column_names)
        if not len(blocks):
            texts = f"{len(split)} texts"
            raise ValueError(f"a split must fill a block of {block} tokens; received {texts}. Lower --block_size.")
        encoded.append(blocks.select(draw_rows(blocks, count, seed)))
    return Data(encoded[0], encoded[1], default_data_collator, tokenizer)
