"""Runs of the recipes in this process, on small data and with small networks."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from unittest import mock

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, GPT2Config, PreTrainedTokenizerFast

from hf_lottery.hf.commands.catalogue import CATALOGUE
from hf_lottery.hf.commands.main import main

ROOT = Path(__file__).parent.parent.parent
QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_pin_memory", "false", "--save_strategy", "no"]
DIGITS = ["--config", str(ROOT / "recipes/digits/imp.yaml"), "--config_name", str(ROOT / "recipes/digits/config.json")]
SMALL = [*DIGITS, "--num_train_epochs", 2, "--max_train_samples", 128, "--per_device_train_batch_size", 32]
SEARCH = [*SMALL, "--sparsity", 0.3, "--pruning_fraction", 0.2, "--rewind", "step:2", "--data_seed", 5]

WORDS = ["[UNK]", "[PAD]", "[EOS]", "good", "bad", "film", "a", "the"]
REVIEWS = ["a good film,1", "bad,0", "the bad film,0", "good good good good,1"]
BERT = BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=len(WORDS),
    max_position_embeddings=16,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=16, vocab_size=len(WORDS), bos_token_id=2, eos_token_id=2)


def run_recipe(module, *arguments):
    """Run the command of a module as its command line would, and return what it printed.

    Raises:
        SystemExit: The command failed; the message is what it said on standard error.
    """
    verbosity = transformers.utils.logging.get_verbosity()
    name = next(name for name, entry in CATALOGUE.items() if module.__name__.endswith(f".hf.{entry.module}"))
    command = [name, *map(str, [*arguments, *QUICK])]
    try:
        with mock.patch("sys.argv", ["hf-lottery", *command]), contextlib.redirect_stdout(io.StringIO()) as printed:
            with contextlib.redirect_stderr(io.StringIO()) as errors:
                status = main(command)
            print(errors.getvalue(), end="", file=sys.stderr)
            if status:
                raise SystemExit(errors.getvalue())
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()
    return printed.getvalue()


def small_vit(folder):
    """Return the settings of a search for signs with a small pre-norm transformer on digits."""
    sizes = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    (folder / "vit.json").write_text(json.dumps(sizes))
    return [
        "--config", ROOT / "recipes/digits/aws.yaml", "--config_name", folder / "vit.json", "--max_train_samples",
        64, "--num_train_epochs", 2, "--dense_epochs", 1, "--level_epochs", 1, "--sparsity", 0.3,
    ]  # fmt: skip


def write_tokenizer(folder):
    """Save a tokenizer of a few words."""
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]", model_max_length=16
    ).save_pretrained(folder)


def text_model(folder, config):
    """Write a folder with a tokenizer and the configuration of a language model, and one with texts; return both."""
    write_tokenizer(folder / "model")
    config.save_pretrained(folder / "model")
    (folder / "texts").mkdir()
    for split in ("train", "test"):
        (folder / f"texts/{split}.csv").write_text("text,label\n" + "\n".join(REVIEWS * 8))
    return folder / "model", folder / "texts"


def titles(folder):
    """Return the headings of the page in a folder, after a look at what it refers to."""
    page = (folder / "report.html").read_text()
    assert all(image.startswith("data:image/png;base64,") for image in re.findall(r'src="(.*?)"', page))
    for link in re.findall(r'<a href="([^#"]+)"', page):
        assert (folder / link).exists() and (folder / link).with_suffix(".png").exists()
    return re.findall(r"<h2.*?>(.*?)</h2>", page)
