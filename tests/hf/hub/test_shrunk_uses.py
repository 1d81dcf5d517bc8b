"""A small model trains with the plain Trainer, and is exported by torch and to ONNX with the same outputs."""

import warnings

import pytest
import torch
from small_models import MODELS, logits, model, saved
from transformers import Trainer, TrainingArguments

from hf_lottery.hf.hub.shrunk import load_shrunk


def loaded(name, folder):
    """Save and load a small model; return it with its inputs."""
    small, inputs, plain = saved(name, folder)
    return (type(small).from_pretrained(folder) if plain else load_shrunk(folder)), inputs


class Logits(torch.nn.Module):
    """A model of one tensor whose only output is its logits, as exporters want it."""

    def __init__(self, inner, name):
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, x):
        options = {"use_cache": False} if hasattr(self.inner.config, "use_cache") else {}
        return self.inner(**{self.name: x}, **options).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_trainer_trains_it(tmp_path, name):
    small, inputs = loaded(name, tmp_path / "small")
    (key, values), = inputs.items()  # fmt: skip
    labels = values if name == "Llama" else torch.tensor([0, 1])
    data = [{key: values[k], "labels": labels[k]} for k in range(2)]
    before = {n: p.clone() for n, p in small.named_parameters()}
    args = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, use_cpu=True, disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", optim="adamw_torch",
        dataloader_pin_memory=False,
    )  # fmt: skip
    assert Trainer(model=small, args=args, train_dataset=data).train().global_step == 3
    changed = [n for n, p in small.named_parameters() if not torch.equal(before[n], p)]
    assert len(changed) > len(before) / 2
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in before.items()}
    assert logits(small.eval(), inputs).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exports_compute_the_same(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    small, inputs = loaded(name, tmp_path / "small")
    (key, values), = inputs.items()  # fmt: skip
    wanted, network = logits(small, inputs), Logits(small, key).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn of their own deprecated parts
        program = torch.export.export(network, (values,), strict=False)
        torch.onnx.export(program, (values,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    assert torch.allclose(program.module()(values), wanted, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: values.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, rtol=0, atol=1e-4)
    large = sum(p.numel() for p in model(name).parameters())
    assert sum(p.numel() for p in small.parameters()) < 0.9 * large
