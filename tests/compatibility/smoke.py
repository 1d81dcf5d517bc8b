"""One pass through the installed package: what must work with every version of Python, torch and transformers.

``python smoke.py FOLDER`` needs the package alone. It writes into the folder and ends with status 0, or with an error.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import hf_lottery
from hf_lottery import LotteryArguments, LotteryTrainer, Snapshot, Ticket

VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
    num_channels=1, num_labels=4, hidden_dropout_prob=0.0,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
LLAMA = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16,
)  # fmt: skip


def import_every_public_name() -> None:
    for name in hf_lottery.__all__:
        getattr(hf_lottery, name)


def align(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Weight matching must undo a random permutation, which changes the weights and nothing of what they compute."""
    spec = hf_lottery.discover(model.eval(), inputs)
    moved = copy.deepcopy(model)
    hf_lottery.permute_(moved, spec.random(1))
    with torch.no_grad():
        torch.testing.assert_close(moved(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    match = hf_lottery.weight_matching(spec, source=model, target=moved, residual=True, restarts=3)
    assert Snapshot.capture(moved).sha256() != Snapshot.capture(model).sha256()
    hf_lottery.permute_(model, match.permutation)
    assert Snapshot.capture(moved).sha256() == Snapshot.capture(model).sha256()


def search_with_a_loop() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))

    def train(model, start):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for _ in range(start.step, 6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
            optimizer.step()

    weights = hf_lottery.prunable(model)
    levels = list(hf_lottery.find_ticket(model, train, within=weights, sparsity=0.75, pruning_fraction=0.5))
    zeros = sum(int((weight == 0).sum()) for weight in hf_lottery.prunable(model).values())
    assert zeros == round(0.75 * sum(weight.numel() for weight in weights.values()))
    assert [level.mask.sparsity for level in levels] == [0, 0.5, 0.75]


def search_with_the_trainer(folder: Path) -> None:
    torch.manual_seed(0)
    data = [{"pixel_values": torch.randn(1, 8, 8), "labels": number % 4} for number in range(16)]
    arguments = LotteryArguments(
        output_dir=str(folder), levels=1, rewind="step:1", num_train_epochs=2, per_device_train_batch_size=8,
        use_cpu=True, disable_tqdm=True, report_to=[],
    )  # fmt: skip
    trainer = LotteryTrainer(
        model=ViTForImageClassification(VIT), args=arguments, train_dataset=data, eval_dataset=data
    )
    trainer.train()
    assert [len(history) for history in (trainer.history, Ticket.from_pretrained(folder / "ticket").series)] == [2, 2]


def read(ticket: Path, folder: Path) -> None:
    """A ticket survives saving, and its model is sparse."""
    loaded = Ticket.from_pretrained(ticket)
    loaded.save_pretrained(folder)
    again = Ticket.from_pretrained(folder)
    assert again.mask == loaded.mask and again.start.sha256() == loaded.start.sha256()
    weights = dict(again.build_model().named_parameters())
    assert not any(weights[name][~mask].any() for name, mask in again.mask.items())


def inspect(ticket: Path) -> None:
    command = [str(Path(sys.executable).with_name("hf-lottery")), "inspect", str(ticket), "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "sparsity" in json.loads(printed)


def main(folder: Path) -> None:
    import_every_public_name()
    torch.manual_seed(0)
    align(ViTForImageClassification(VIT), {"pixel_values": torch.randn(2, 1, 8, 8)})
    for model in (GPT2LMHeadModel(GPT2), LlamaForCausalLM(LLAMA)):
        align(model, {"input_ids": torch.arange(16).view(2, 8)})
    search_with_a_loop()
    search_with_the_trainer(folder / "search")
    read(folder / "search" / "ticket", folder / "again")
    inspect(folder / "again")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
