"""The curvature of a loss."""

import pytest
import torch
from small_task import vit
from torch import nn
from torch.nn import functional as F

from hf_lottery.connectivity.hessian import top_hessian_eigenvalue
from hf_lottery.masks.mask import Mask, MaskMismatchError
from hf_lottery.training.snapshot import Snapshot


def quadratic(*eigenvalues):
    """A network of one parameter, and a loss with these eigenvalues in a random basis."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    model = nn.Linear(size, 1, bias=False).double()
    return model, matrix, lambda m: m.weight[0] @ matrix @ m.weight[0] / 2


@pytest.mark.parametrize(
    "eigenvalues", [(1.0, 2.0, 5.0), (-9.0, 1.0, 5.0), (-4.0, -3.0, -1.0), (-5.0, 0.0, 4.0), (-5.0, 1.0, 5.0)]
)
def test_a_quadratic(eigenvalues):
    model, _, loss = quadratic(*eigenvalues)
    found = top_hessian_eigenvalue(model, loss, iterations=1000, tolerance=1e-7)
    assert found.value == pytest.approx(max(eigenvalues), abs=1e-6)
    assert found.converged and found.residual <= 1e-5


def full(model, x, y, names):
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}

    def loss(flat):
        parts = flat.split([p.numel() for p in parameters.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in parameters.values()]))


def small():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.randint(3, (30,))
    return model, x, y, lambda m: F.cross_entropy(m(x), y)


def test_a_network_against_its_full_hessian():
    model, x, y, loss = small()
    before, names = Snapshot.capture(model).sha256(), dict(model.named_parameters())
    exact = torch.linalg.eigvalsh(full(model, x, y, names))[-1].item()
    found = top_hessian_eigenvalue(model, loss, iterations=2000, tolerance=1e-5)
    assert found.converged and found.value == pytest.approx(exact, rel=1e-6)
    assert Snapshot.capture(model).sha256() == before and all(p.grad is None for p in model.parameters())
    rough = top_hessian_eigenvalue(model, loss, iterations=500)
    assert rough.converged and abs(rough.value - exact) <= rough.residual <= 0.01 * rough.value


def test_under_a_mask_and_over_chosen_parameters():
    model, x, y, loss = small()
    names = ["0.weight", "3.weight", "3.bias"]
    mask = Mask({"0.weight": torch.rand(4, 3) < 0.5, "3.weight": torch.rand(3, 4) < 0.5})
    hessian = full(model, x, y, names)
    kept = torch.cat([mask["0.weight"].flatten(), mask["3.weight"].flatten(), torch.ones(3, dtype=torch.bool)])
    exact = torch.linalg.eigvalsh(hessian[kept][:, kept])[-1].item()
    tight = {"iterations": 3000, "tolerance": 1e-6}
    masked = top_hessian_eigenvalue(model, loss, mask=mask, include=names, **tight)
    assert masked.value == pytest.approx(exact, rel=1e-6)
    chosen = top_hessian_eigenvalue(model, loss, include=r"^[03]\.", exclude="0.bias", **tight)
    assert chosen.value == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)
    assert masked.value < chosen.value


def test_a_tied_parameter_counts_once_under_any_of_its_names():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    model[2].weight = model[0].weight
    x = torch.randn(20, 3, dtype=torch.float64)
    values = [
        top_hessian_eigenvalue(model, lambda m: m(x).square().mean(), include=include)
        for include in (None, ["0.weight", "2.weight"], "2.weight")
    ]
    assert values[0] == values[1] == values[2]


def test_what_is_frozen_does_not_count():
    model, x, y, loss = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "3.weight")
    exact = torch.linalg.eigvalsh(full(model, x, y, ["3.weight"]))[-1].item()
    found = top_hessian_eigenvalue(model, loss, iterations=2000, tolerance=1e-6)
    assert found.value == pytest.approx(exact, rel=1e-6)


def test_a_transformer_with_fused_attention():
    model = vit(1).eval()
    assert model.config._attn_implementation == "sdpa"
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    found = top_hessian_eigenvalue(model, lambda m: F.cross_entropy(m(x).logits, y))
    assert found.converged and found.value > 0
    with torch.no_grad():  # as in an evaluation
        assert top_hessian_eigenvalue(model, lambda m: F.cross_entropy(m(x).logits, y)).value == found.value


def test_a_straight_loss_and_one_that_does_not_converge():
    model = nn.Linear(3, 1)
    flat = top_hessian_eigenvalue(model, lambda m: m.weight.sum())
    assert flat == (0.0, 0.0, 1, True) and repr(flat) == "TopEigenvalue(0, residual 0, 1 products, converged)"
    model, _, loss = quadratic(0.99, 1.0)
    short = top_hessian_eigenvalue(model, loss, iterations=2, tolerance=1e-9)
    assert not short.converged and short.iterations == 4 and short.residual > 1e-9


def test_what_has_no_hessian():
    model = nn.Linear(3, 2)
    for names in ("nonsense", ["nonsense"]):
        with pytest.raises(ValueError, match="include must match the name of a trainable parameter; received 'nonsen"):
            top_hessian_eigenvalue(model, lambda m: m.weight.sum(), include=names)
    with pytest.raises(ValueError, match="there must be a trainable parameter"):
        top_hessian_eigenvalue(model.requires_grad_(False), lambda m: m.weight.sum())
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"loss must return a tensor without dimensions.* received \[2, 3\]"):
        top_hessian_eigenvalue(model, lambda m: m.weight)
    with pytest.raises(ValueError, match="with a gradient; received one without"):
        top_hessian_eigenvalue(model, lambda m: torch.tensor(1.0))
    with pytest.raises(MaskMismatchError):
        top_hessian_eigenvalue(model, lambda m: m.weight.sum(), mask=Mask({"x": torch.ones(2, dtype=torch.bool)}))
    empty = Mask({"weight": torch.zeros(2, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="mask must keep a weight of the parameters; received one that keeps none"):
        top_hessian_eigenvalue(model, lambda m: m.weight.square().sum(), mask=empty, include="weight")
