"""The oracle of the tracing rules: what a trace says of a function, against the function itself.

Label some tensors, run a function under the trace, permute its inputs by a random legal permutation, run it again, and
compare with its permuted outputs.
"""

import torch

from hf_lottery.symmetry import rules  # noqa: F401  # registers the rules
from hf_lottery.symmetry.solve import solve
from hf_lottery.symmetry.spec import PermutationSpec
from hf_lottery.symmetry.trace import Trace


def probe(function, *inputs, fixed=(), free=None, seeds=3):
    """Check that what the trace says of a function holds, and how many groups it leaves free in the inputs."""
    trace = Trace()
    axes = {}
    for i, tensor in enumerate(inputs):
        axes[f"in{i}"] = trace.source(tensor)
        if i in fixed:
            trace.freeze(tensor, "fixed")
    with trace:
        made = function(*inputs)
    results = {f"out{i}": t for i, t in enumerate([made] if isinstance(made, torch.Tensor) else made)}
    assert not trace.unknown
    axes |= {name: trace.of(tensor) for name, tensor in results.items()}
    spec = PermutationSpec(*solve(axes, trace.seen, trace.lookups))
    for seed in range(seeds):
        permutation = spec.random(seed)
        moved = permutation({f"in{i}": tensor for i, tensor in enumerate(inputs)})
        again = function(*moved.values())
        again = [again] if isinstance(again, torch.Tensor) else again
        expected = permutation(results)
        for got, want in zip(again, expected.values(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    found = sum(any(tensor.startswith("in") for tensor, _ in spec.members[name]) for name in spec.free)
    if free is not None:
        assert found == free, spec
    return spec


_DRAW = torch.Generator().manual_seed(0)


def r(*shape):
    return torch.randn(shape, generator=_DRAW, dtype=torch.float64)
