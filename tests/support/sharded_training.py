"""What the processes of test_shards.py do: a network trained, captured and interpolated whole and sharded (FSDP2)."""

import copy
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from hf_lottery import Mask, SignedMask, Snapshot, Ticket, find_ticket, keep_sparse, prunable, prune, score_weights
from hf_lottery.networks.names import named_weights
from hf_lottery.networks.shards import class_name, is_sharded, local, part_of, whole
from hf_lottery.pruning.evidence import Evidence, gather_evidence
from hf_lottery.pruning.scores import magnitude, movement, random_score, saliency, wanda
from hf_lottery.pruning.selection import remove_lowest
from hf_lottery.signs.norms import interpolated_norms, norm_parameters, norm_path
from hf_lottery.training.rewind import parse_rewind
from hf_lottery.training.snapshot import save_snapshot
from hf_lottery.training.sparsity import SparsityLeakError


class Net(nn.Module):
    """A tied head, norms in a block and outside, rows that do not divide, and a parameter of one row."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.block = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 6))
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Linear(6, 1)
        self.head = nn.Linear(6, 13, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, tokens):
        hidden = self.norm(self.block(self.embedding(tokens)))
        return self.head(hidden) * self.scale(hidden)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    model = Net()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.1)
    return model.to(dtype)


def sharded(model, **settings):
    fully_shard(model.block, **settings)
    return fully_shard(model, **settings)


def batch(step, shares, share):
    """The tokens of one process, or of all."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 13, (4 * shares, 2, 3), generator=draw)
    return tokens if share is None else tokens[4 * share : 4 * share + 4]


def loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens[:, 0]).flatten(0, 1).float(), tokens[:, 1].flatten())


class Twins:
    """The same network whole and sharded. The sharded one gets this process's share of every batch."""

    def __init__(self, rank, processes, **settings):
        self.rank, self.processes = rank, processes
        self.whole, self.shards = net(), sharded(net(), **settings)

    def both(self):
        return ((self.whole, None), (self.shards, self.rank))

    def share(self, step, share):
        return batch(step, self.processes, share)

    def apart(self):
        """The largest difference between the two."""
        a, b = (Snapshot.capture(model).tensors for model in (self.whole, self.shards))
        assert a.keys() == b.keys()
        return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def _train(model, make, share, twins, mask, packed):
    lengths, optimizer = [], make(model.parameters())
    with keep_sparse(model, mask, packed=packed):
        for step in range(3):
            for micro in range(2):
                if share is not None:
                    model.set_requires_gradient_sync(micro == 1)
                loss(model, twins.share(10 * step + micro, share)).backward()
            length = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            lengths.append(float(whole(length)))
            optimizer.step()
            optimizer.zero_grad()
    return lengths


def training(twins):
    """Accumulated, clipped and stepped under a mask: differences of gradient norms and weights."""
    found = []
    for packed, make in ((False, torch.optim.Adagrad), (True, torch.optim.Adagrad), (False, _Drifting)):
        mask = prune(score_weights(prunable(twins.whole)), 0.5)
        assert mask == prune(score_weights(prunable(twins.shards)), 0.5)
        lengths = [_train(model, make, share, twins, mask, packed) for model, share in twins.both()]
        found += [abs(a / b - 1) for a, b in zip(*lengths, strict=True)]
        assert Mask.from_model(prunable(twins.shards)) == mask
    return max(*found, twins.apart())


class _Drifting(torch.optim.SGD):
    """An optimizer that revives what is pruned."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.01)

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(0.01)


def columns(twins):
    """Shards that are no whole rows, and halves: whether the mask of packed bits is held."""
    model = net(torch.bfloat16)
    fully_shard(model.block, shard_placement_fn=lambda p: Shard(p.ndim - 1 if p.shape[-1] % 2 == 0 else 0))
    fully_shard(model)
    assert model.block[0].weight.placements == (Shard(1),)
    mask = prune(score_weights(prunable(model)), 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    with keep_sparse(model, mask, packed=True):
        for step in range(2):
            loss(model, twins.share(step, twins.rank)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return mask == prune(score_weights(prunable(net(torch.bfloat16))), 0.5) == Mask.from_model(prunable(model))


def loaded_state(twins):
    """Whether a state that is loaded later is masked on the shards."""
    model, optimizer = twins.shards, torch.optim.Adam(twins.shards.parameters(), 0.01)
    loss(model, twins.share(0, twins.rank)).backward()
    optimizer.step()
    state, mask = copy.deepcopy(optimizer.state_dict()), prune(score_weights(prunable(model)), 0.5)
    with keep_sparse(model, mask, optimizer):
        optimizer.load_state_dict(state)
    moments = [(mask[n], w, optimizer.state[w]["exp_avg"]) for n, w in prunable(model).items()]
    return not any(local(moment)[~part_of(entry, weight)].any() for entry, weight, moment in moments)


def sharded_too_late(twins):
    """The error of a mask that was bound before the parameters were replaced."""
    model = net()
    handle = keep_sparse(model, prune(score_weights(prunable(model)), 0.5))
    sharded(model)
    try:
        handle.verify()
    except SparsityLeakError as error:
        return str(error)
    finally:
        handle.remove()


def masks(twins):
    """Masks and signs of shards equal to those of whole weights."""
    mask = prune(score_weights(prunable(twins.whole)), 0.5)
    signed = []
    for model, _ in twins.both():
        mask.apply_(model)
        signed.append(SignedMask.from_model(model, mask))
    positive = [Mask({n: p.detach() > 0 for n, p in prunable(model).items()}) for model, _ in twins.both()]
    return signed[0] == signed[1] and positive[0] == positive[1] and class_name(twins.shards) == "Net"


def drawn_apart(twins):
    """The mask of random scores that every process draws by itself."""
    torch.manual_seed(twins.rank)
    return prune(score_weights(prunable(twins.shards), random_score), 0.5).sha256()


def snapshots(twins):
    """A snapshot put into shards while some are gathered; the file of it; networks of the same outputs."""
    with torch.no_grad():
        for parameter in twins.whole.parameters():
            parameter.mul_(1.5)
        start = Snapshot.capture(twins.whole, step=4)
        twins.shards(twins.share(0, twins.rank)[:, 0])
        start.restore_(twins.shards)
        outputs = [model(twins.share(0, twins.rank)[:, 0]) for model, _ in twins.both()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "snapshot.safetensors"
        save_snapshot(twins.shards, file, step=4, write=twins.rank == 0)
        saved = twins.rank == 0 and Snapshot.load(file)
        written = file.exists()
    same = torch.equal(*outputs) and Snapshot.capture(twins.shards, step=4).sha256() == start.sha256()
    return same and written == (twins.rank == 0) and (not saved or (saved.sha256(), saved.step) == (start.sha256(), 4))


def tickets(twins):
    """Whether a ticket knows the class of shards, and puts what fits of another's weights into them."""
    with torch.no_grad():
        for parameter in twins.whole.parameters():
            parameter.mul_(1.5)
    mask = prune(score_weights(prunable(twins.whole)), 0.5)
    ticket = Ticket(mask, Snapshot.capture(twins.whole), {"architecture": "Net"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        replace(ticket, info={"architecture": "Other"}).apply_(twins.shards, strict=False)
    mask.apply_(twins.whole)
    return ticket.differences(twins.shards) == [] and twins.apart() == 0


def unstorable(twins):
    """The error on every process, not only on the one that writes."""
    twins.shards.register_buffer("odd", torch.zeros(1, dtype=torch.complex128))
    try:
        save_snapshot(twins.shards, "never", write=twins.rank == 0)
    except TypeError as error:
        return str(error)


def refused(twins):
    """The errors of what is not laid out in blocks over one mesh, and of a count that is too large."""
    meshes = [init_device_mesh("cpu", shape) for shape in ((2,), (1, 2))]
    rows = [DTensor.from_local(torch.ones(2, 2), mesh, [Replicate()] * (mesh.ndim - 1) + [Shard(0)]) for mesh in meshes]
    summands, errors = DTensor.from_local(torch.ones(2, 2), meshes[0], [Partial()]), []
    for scores, remove in (({"a": summands}, 2), (dict(zip("ab", rows, strict=True)), 2), ({"a": rows[0]}, 99)):
        try:
            remove_lowest(scores, remove)
        except (NotImplementedError, ValueError) as error:
            errors.append(str(error))
    return " ".join(errors)


def norm_gradients(twins):
    """Gradients with interpolated norms over two backward passes, after a forward pass that had none."""
    initial = {name: torch.full_like(value, 2.0) for name, value in norm_parameters(twins.whole).snapshot().items()}
    gradients = []
    for model, share in twins.both():
        for step, alpha in enumerate((0.3, 0.6)):
            with torch.no_grad():
                model(twins.share(5, share)[:, 0])
            with interpolated_norms(model, initial, alpha):
                loss(model, twins.share(step, share)).backward()
        gradients.append({n: whole(p.grad) for n, p in named_weights(model).items()})
    return max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[0])


def norms_on_a_path(twins):
    """Losses on the path and afterwards; and whether a snapshot of shards leads back to them."""
    initial = [norm_parameters(model).snapshot() for model, _ in twins.both()]
    losses = []
    for (model, share), values in zip(twins.both(), initial, strict=True):
        with torch.no_grad():
            for parameter in norm_parameters(model).values():
                parameter.mul_(3)

            def evaluate(model, share=share):
                found = loss(model, twins.share(1, share))
                if share is not None:
                    dist.all_reduce(found)
                return float(found) / (1 if share is None else twins.processes)

            losses.append([*(found for _, found in norm_path(model, values, evaluate, points=3)), evaluate(model)])
    return max(abs(a - b) for a, b in zip(*losses, strict=True)), losses[0][0] == losses[0][-1] != losses[0][-2]


def norms_written(twins):
    """The error of a step inside of the block."""
    model = twins.shards
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    try:
        with interpolated_norms(model, norm_parameters(net()).snapshot(), 0.5):
            loss(model, twins.share(0, twins.rank)).backward()
            optimizer.step()
    except RuntimeError as error:
        return str(error)


def searches(twins):
    """Whether find_ticket finds the same masks whole and sharded, for every score and kind of rewinding."""
    wrong = []
    for score, rewind in (
        (magnitude, "init"), (movement, "step:1"), (saliency, "init"), (wanda, "learning_rate"), (random_score, "init")
    ):  # fmt: skip
        found = []
        for model, share in Twins(twins.rank, twins.processes).both():
            torch.manual_seed(3)

            def train(model, start, share=share):
                optimizer = torch.optim.SGD(model.parameters(), 0.1)
                for step in range(2):
                    loss(model, twins.share(step, share)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                with torch.no_grad():
                    model(twins.share(9, share)[:, 0])

            def evidence(model):  # the same on all processes
                return gather_evidence(model, [twins.share(7, None)], loss, within=prunable(model))

            levels = find_ticket(
                model, train, within=prunable(model), levels=2, pruning_fraction=0.3, score=score,
                rewind=parse_rewind(rewind), evidence=evidence if score in (saliency, wanda) else None,
            )  # fmt: skip
            found.append([level.mask for level in levels])
        if found[0] != found[1]:
            wrong.append(score.__name__)
    return wrong


def beside_whole_ones(twins):
    """Parameters that fully_shard is to leave alone, and frozen ones: whether the mask is that of whole weights."""
    model = net()
    model.block[2].requires_grad_(False)
    fully_shard(model, ignored_params={model.block[0].weight})
    assert [is_sharded(weight) for weight in prunable(model).values()] == [False, True, True]
    mask = prune(score_weights(prunable(model)), 0.5)
    with keep_sparse(model, mask):
        pass
    return mask == prune(score_weights(prunable(net())), 0.5) and Snapshot.capture(model).tensors.keys() == {
        *Snapshot.capture(net()).tensors
    }


def replicas(twins):
    """Whether the weights of two replicas of one shard each are captured once and scored alike."""
    model = fully_shard(net(), mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    evidence = {name: Evidence(start=torch.zeros(weight.shape)) for name, weight in prunable(model).items()}
    mask = prune(score_weights(prunable(model), movement, evidence=evidence), 0.5)
    same = Snapshot.capture(model).sha256() == Snapshot.capture(net()).sha256()
    return same and mask == prune(score_weights(prunable(net())), 0.5)


CHECKS = (
    training, columns, loaded_state, sharded_too_late, masks, drawn_apart, snapshots, tickets, unstorable, refused,
    norm_gradients, norms_on_a_path, norms_written, searches, beside_whole_ones, replicas,
)  # fmt: skip


def run_all(rank, processes):
    """What every check found, by its name."""
    warnings.simplefilter("ignore")
    return {check.__name__: check(Twins(rank, processes)) for check in CHECKS}
