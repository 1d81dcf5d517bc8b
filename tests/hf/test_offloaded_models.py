"""Weights without numbers, on the meta device or offloaded, are refused by all that reads or writes them."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import hf_lottery as hl
from hf_lottery.connectivity import loss_plane, recalibrate_batch_norm_, repair_, top_hessian_eigenvalue
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.networks.names import named_weights
from hf_lottery.signs import SignedMask, fold_norms_, interpolated_norms, sign_agreement
from hf_lottery.symmetry.verification import verify
from hf_lottery.training.snapshot import save_snapshot

NAMED = r"every weight must have its numbers in memory; received '.+' on the meta device, .*Load the whole model"


def llama():
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def on_meta(model, folder):
    return copy.deepcopy(model).to("meta")


def on_disk(model, folder):
    """One layer on disk; the rest has its numbers."""
    places = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places["model.layers.1"] = "disk"
    options = dict(main_device="cpu", offload_dir=folder, force_hooks=True)
    return dispatch_model(copy.deepcopy(model), places, **options)


def in_memory(model, folder):
    """Every layer in another part of the memory than the parameters say."""
    return cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))


def loss(model, batch):
    return model(input_ids=batch, labels=batch).loss


class Ready:
    """What a call needs besides the model without numbers."""

    def __init__(self):
        self.model = llama()
        self.ids = torch.randint(1, 32, (2, 6))
        self.mask = hl.prune(hl.score_weights(hl.prunable(self.model)), 0.5)
        self.start = hl.Snapshot.capture(self.model)
        self.signed = SignedMask.from_model(self.model, self.mask)
        self.spec = hl.discover(self.model, {"input_ids": self.ids})
        self.batches = [{"input_ids": self.ids}]


@pytest.fixture(scope="module")
def ready():
    return Ready()


def measure(model):
    return 0.0


CALLS = {
    "apply": lambda r, m: r.mask.apply_(m),
    "fits": lambda r, m: r.mask.check_fits(m),
    "from a model": lambda r, m: hl.Mask.from_model(m),
    "from its weights": lambda r, m: hl.Mask.from_model(hl.prunable(m)),
    "score": lambda r, m: hl.score_weights(hl.prunable(m)),
    "prune": lambda r, m: hl.prune({name: weight.abs() for name, weight in hl.prunable(m).items()}, 0.5),
    "evidence": lambda r, m: hl.gather_evidence(m, [r.ids], loss, within=hl.prunable(m)),
    "capture": lambda r, m: hl.Snapshot.capture(m),
    "restore": lambda r, m: r.start.restore_(m),
    "save": lambda r, m: save_snapshot(m, "unused"),
    "ticket": lambda r, m: hl.Ticket(r.mask, r.start, {}).apply_(m),
    "reference": lambda r, m: Reference.to(hl.Snapshot.capture(m), m, 0),
    "hold": lambda r, m: hl.keep_sparse(m, r.mask),
    "search": lambda r, m: hl.find_ticket(m, measure, within=hl.prunable(m), sparsity=0.5),  # pyright: ignore
    "permute": lambda r, m: hl.permute_(m, r.spec.random(0)),
    "permute weights": lambda r, m: r.spec.random(0)(named_weights(m, numbers=False)),
    "discover": lambda r, m: hl.discover(m, r.batches[0]),
    "verify": lambda r, m: verify(r.spec, m, r.batches[0]),
    "match weights": lambda r, m: hl.weight_matching(r.spec, source=m, target=r.model),
    "match to": lambda r, m: hl.weight_matching(r.spec, source=r.model, target=m),
    "match activations": lambda r, m: hl.activation_matching(r.spec, source=r.model, target=m, batches=r.batches),
    "signs": lambda r, m: SignedMask.from_model(m, r.mask),
    "transfer": lambda r, m: r.signed.transfer_(m),
    "agreement": lambda r, m: r.signed.agreement(m),
    "sign agreement": lambda r, m: sign_agreement(r.mask, named_weights(m, numbers=False), r.start.tensors),
    "norms": lambda r, m: hl.norm_parameters(m).snapshot(),
    "interpolated norms": lambda r, m: interpolated_norms(m, {}, 0.5).__enter__(),
    "fold": lambda r, m: fold_norms_(m, r.batches[0]),
    "barrier": lambda r, m: hl.error_barrier(r.model, m, measure),
    "plane": lambda r, m: loss_plane(r.model, m, llama(), measure),
    "repair": lambda r, m: repair_(r.model, source=r.model, target=m, batches=r.batches),
    "recalibrate": lambda r, m: recalibrate_batch_norm_(m, r.batches),
    "curvature": lambda r, m: top_hessian_eigenvalue(m, lambda model: loss(model, r.ids)),
}


@pytest.mark.parametrize("offload", [on_meta, on_disk, in_memory])
@pytest.mark.parametrize("call", CALLS)
def test_refused(ready, call, offload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = offload(ready.model, tmp_path / "offloaded")
    unproven = "the weights and inputs must be loaded to prove the spec; received '.+' on the meta device"
    message = unproven if call == "discover" else NAMED
    with pytest.raises(ValueError, match=message):
        CALLS[call](ready, model)
    assert not list(tmp_path.glob("unused*"))


@pytest.mark.parametrize("offload", [on_meta, on_disk, in_memory])
def test_what_reads_shapes_alone_works(ready, offload, tmp_path):
    model = offload(ready.model, tmp_path)
    plain = hl.prunable(ready.model)
    found = hl.prunable(model)
    assert list(found) == list(plain) and str(found) == str(plain) and found.weights == plain.weights
    assert hl.Mask.dense(found) == hl.Mask.dense(plain)
    assert hl.Mask.dense(model) == hl.Mask.dense(ready.model)
    assert list(hl.norm_parameters(model)) == list(hl.norm_parameters(ready.model))
    ready.spec.check_fits(model)
    assert not hl.Ticket(ready.mask, ready.start, {}).differences(model)


def test_nothing_is_written_before_the_refusal(ready, tmp_path):
    model = on_disk(ready.model, tmp_path)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.is_meta}
    for call in ("apply", "restore", "ticket", "permute", "transfer", "hold"):
        with pytest.raises(ValueError, match=NAMED):
            CALLS[call](ready, model)
    assert len(before) > 5 and all(torch.equal(model.get_parameter(name), p) for name, p in before.items())


def test_a_network_to_be_repaired_must_have_numbers():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=NAMED):
        repair_(copy.deepcopy(model).to("meta"), source=model, target=model, batches=[torch.randn(8, 3)])


def test_tensors_of_your_own_must_have_numbers():
    absent = {"weight": torch.empty(2, 3, device="meta")}
    mask = hl.Mask({"weight": torch.ones(2, 3, dtype=torch.bool)})
    calls = (
        lambda: mask.apply_(absent),
        lambda: hl.Mask({"weight": absent["weight"] != 0}),
        lambda: hl.Snapshot(0, absent),
        lambda: hl.prune(absent, 0.5),
    )
    for call in calls:
        with pytest.raises(ValueError, match=NAMED):
            call()


def test_a_lazy_layer_is_refused():
    model, mask = nn.Sequential(nn.LazyLinear(2)), hl.Mask({"0.weight": torch.ones(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"received '0\.weight' of a lazy module, which has no shape yet\."):
        mask.apply_(model)
    model(torch.ones(1, 3))
    mask.apply_(model)
