"""What the processes of test_sharded_selection.py do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from hf_lottery import Mask, global_ranking, n_of_m, prune, uniform
from hf_lottery.pruning import chunks
from hf_lottery.pruning.selection import remove_lowest

LAYOUTS = {
    "rows": ((None,), (Shard(0),)),
    "columns": ((None,), (Shard(1),)),
    "replicas": ((2, -1), (Replicate(), Shard(0))),
    "blocks": ((2, -1), (Shard(0), Shard(1))),
}


@contextmanager
def alone() -> Iterator[None]:
    """Make this process a group of its own, whose shards are whole weights: quick, but it tests no communication."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def cases():
    """Name -> scores, count to remove, who competes; ties, signs, infinities, other dtypes, uneven shards."""
    draw = torch.Generator().manual_seed(0)
    plain = {"b": torch.randn(37, 5, generator=draw), "a": torch.randn(3, 50, generator=draw)}
    ties = {"b": torch.randint(-2, 3, (37, 5), generator=draw).float(), "a": torch.zeros(11, 7), "c": torch.ones(1, 2)}
    edges = {"a": torch.tensor([[0.0, -0.0, 1.0], [torch.inf, -torch.inf, 1e-45]]), "b": -torch.ones(2, 2)}
    halves = {"a": torch.randn(64, 8, generator=draw).bfloat16(), "b": torch.randn(9, 9, generator=draw).half()}
    double = {"a": 1 + torch.rand(20, 20, generator=draw, dtype=torch.float64) * 1e-12, "b": torch.ones(6, 6)}
    alive = {name: torch.rand(score.shape, generator=draw) < 0.6 for name, score in ties.items()}
    equal = {"a": torch.zeros(3, 3), "b": torch.zeros(5, 2)}
    for name, scores in {
        "plain": plain,
        "ties": ties,
        "edges": edges,
        "halves": halves,
        "double": double,
        "equal": equal,
    }.items():
        count = sum(score.numel() for score in scores.values())
        for remove in sorted({0, 1, count // 3, count // 2, count - 1, count, *(range(count) if count < 12 else ())}):
            yield f"{name}-{remove}", scores, remove, None
    for remove in (0, 1, 50, int(sum(entry.sum() for entry in alive.values()))):
        yield f"alive-{remove}", ties, remove, alive
    yield "none", ties, 0, {name: torch.zeros_like(entry) for name, entry in alive.items()}


def select_all(rank, processes, layout):
    """Whether every case gives the mask of one process; the names of those that do not."""
    chunks.CHUNK = 16  # so that a tensor takes several chunks
    shape, placements = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", (processes,) if len(shape) == 1 else (2, processes // 2))
    wrong = []
    for name, scores, remove, alive in cases():
        sharded = {k: distribute_tensor(s, mesh, placements, src_data_rank=None) for k, s in scores.items()}
        expected, found = (remove_lowest(s, remove, alive=alive) for s in (scores, sharded))
        if any(not torch.equal(expected[k], found[k]) for k in scores) or list(expected) != list(found):
            wrong.append(name)
    return wrong


def scopes(rank, processes):
    """Masks of whole prune() calls on sharded and plain scores together, against those of one process."""
    mesh = init_device_mesh("cpu", (processes,))
    draw = torch.Generator().manual_seed(1)
    scores = {"a": torch.randn(13, 8, generator=draw), "b": torch.randn(8, 4, generator=draw), "c": torch.rand(5, 4)}
    scores["c"] = torch.ones(5, 4)
    sharded = {k: distribute_tensor(s, mesh, [Shard(0)], src_data_rank=None) for k, s in scores.items() if k != "b"}
    sharded = {"a": sharded["a"], "b": scores["b"], "c": sharded["c"]}
    first = prune(scores, 0.3)
    found = {}
    for name, scope, sparsity, within, least in (
        ("global", global_ranking, 0.5, None, 0.0),
        ("floor", global_ranking, 0.8, first, 0.1),
        ("uniform", uniform, 0.5, first, 0.0),
        ("2:4", n_of_m(2, 4), 0.5, None, 0.0),
        ("2:4 by rows", n_of_m(1, 2, axis={"a": 1, "b": 0, "c": 1}), 0.5, None, 0.0),
    ):
        masks = [prune(s, sparsity, scope=scope, within=within, min_density=least) for s in (scores, sharded)]
        assert isinstance(masks[1], Mask)
        found[name] = masks[0] == masks[1]
    return found


def nan_on_one(rank, processes):
    """The error of scores with a NaN on the last process only."""
    mesh = init_device_mesh("cpu", (processes,))
    scores = torch.ones(4, 4)
    scores[3, 3] = torch.nan
    try:
        remove_lowest({"a": distribute_tensor(scores, mesh, [Shard(0)], src_data_rank=None)}, 3)
    except ValueError as error:
        return str(error)
