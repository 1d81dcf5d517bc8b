"""Tiny language models, a tokenizer of a few words, and the trainers of transformers and trl that fine-tune them."""

import torch
from datasets import Dataset
from peft import get_peft_model
from small_task import Killed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_lottery import Mask, SparsityCallback, prunable
from hf_lottery.networks.names import named_weights

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "slow", "good", "bad", "yes", "no", "and", "then"]
SIZES = {"vocab_size": 19, "pad_token_id": 0, "eos_token_id": 1}


def tokenizer():
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def llama(seed=0):
    set_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **sizes, bos_token_id=None)).eval()


def t5(seed=0):
    set_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**SIZES, **sizes, decoder_start_token_id=0)).eval()


def mask_of(model, density=0.5):
    generator = torch.Generator().manual_seed(1)
    return Mask({n: torch.rand(p.shape, generator=generator) < density for n, p in prunable(model).items()})


def alive(model, mask):
    """Count the weights of a model that a mask prunes and that are not zero."""
    weights = named_weights(model)
    return sum(int((weights[name].detach()[~entry] != 0).sum()) for name, entry in mask.items())


def texts(count=16):
    numbers = torch.randint(len(WORDS), (count, 6), generator=torch.Generator().manual_seed(0))
    return [" ".join(WORDS[number] for number in row) for row in numbers.tolist()]


def pairs():
    """Prompts with an answer to prefer and one to avoid."""
    return Dataset.from_dict({"prompt": texts(), "chosen": [" good yes"] * 16, "rejected": [" bad no"] * 16})


def rows():
    return [{"input_ids": row, "labels": row} for row in tokenizer()(texts())["input_ids"]]


def praise(completions, **columns):
    """The reward of GRPO: how often a text says "good", and a little for its length."""
    return [text.count("good") + 0.01 * len(text) for text in completions]


class Watch(TrainerCallback):
    """Counts pruned weights that are not zero after each step, and may kill the training there."""

    def __init__(self, mask, kill_at=None):
        self.mask, self.kill_at, self.alive = mask, kill_at, []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.alive.append(alive(model, self.mask))
        if state.global_step == self.kill_at:
            raise Killed


def fine_tuner(kind, base, folder, mask, *, adapter=None, kill_at=None, **settings):
    """A trainer of one kind, made as its own documentation shows it, with the callback that holds the mask.

    Args:
        kind: "SFT", "DPO", "GRPO", "Seq2Seq" or "plain".
        base: The folder of the sparse base model.
        folder: Where it saves checkpoints.
        mask: The mask.
        adapter: A configuration of PEFT, or None to train all weights.
        kill_at: The step after which it is killed, or None.
        settings: Further training arguments.
    """
    settings = {
        "output_dir": str(folder), "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True,
        "learning_rate": 0.01, "report_to": "none", "disable_tqdm": True, "logging_steps": 1,
        "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    callbacks = [SparsityCallback(mask), Watch(mask, kill_at)]
    loader = AutoModelForSeq2SeqLM if kind == "Seq2Seq" else AutoModelForCausalLM
    set_seed(0)  # an adapter is drawn before the trainer seeds anything
    model = loader.from_pretrained(base)
    if kind in ("Seq2Seq", "plain"):
        model = model if adapter is None else get_peft_model(model, adapter)
        trainer, options = (
            (Seq2SeqTrainer, Seq2SeqTrainingArguments) if kind == "Seq2Seq" else (Trainer, TrainingArguments)
        )
        return trainer(model, args=options(**settings), train_dataset=rows(), callbacks=callbacks)
    import trl  # it needs Python 3.11

    common = {"processing_class": tokenizer(), "callbacks": callbacks, "peft_config": adapter}
    if kind == "SFT":
        data, args = Dataset.from_dict({"text": texts()}), trl.SFTConfig(**settings, max_length=16)
        return trl.SFTTrainer(model, args=args, train_dataset=data, **common)
    if kind == "DPO":
        reference = settings.pop("ref_model", None)
        return trl.DPOTrainer(model, reference, args=trl.DPOConfig(**settings), train_dataset=pairs(), **common)
    args = trl.GRPOConfig(**{"max_completion_length": 4, "num_generations": 4, "beta": 0.1, **settings})
    return trl.GRPOTrainer(model, praise, args=args, train_dataset=pairs().select_columns("prompt"), **common)
