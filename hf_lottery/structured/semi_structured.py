"""N:M tickets on the hardware that has them: linear layers with torch's semi-structured weights.

A GPU from compute capability 8.0 on multiplies a matrix that keeps 2 of every 4 weights from half of its memory. The
same ticket is not faster anywhere else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..masks.mask import Mask
from ..networks.display import first_names
from ..networks.names import base_modules, named_weights
from ..networks.numbers import check_plain
from ..networks.selection import Patterns, select_names
from ..networks.shards import is_sharded

_DTYPES = (torch.float16, torch.bfloat16)  # one library takes float32 too, but rounds its inputs to 11 bits
_MULTIPLE = 16  # of both lengths of a weight, for every kernel; some kernels want more
_HEIGHTS = (1, 40)  # rows of the inputs of a proof: padded to a whole tile, and more than one tile
_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class PackedWeight:
    """A weight that a semi-structured tensor replaced.

    Attributes:
        name: Name of the parameter.
        difference: The largest difference between the layer's outputs and exact ones, over the largest output.
        bytes: Memory of the packed weight.
        dense_bytes: Memory of the weight before.
    """

    name: str
    difference: float
    bytes: int
    dense_bytes: int


def to_semi_structured_(
    model: nn.Module, mask: Mask, *, include: Patterns | None = None, exclude: Patterns | None = None
) -> list[PackedWeight]:
    """Replace the weights of linear layers by torch's semi-structured tensors, in place.

    Weights that the mask removes count as zero. Each layer is computed both ways before anything is replaced. The
    result is for inference: packed weights take no gradients and are not saved as safetensors. Save the ticket, and
    pack it again where it is served.

    Args:
        model: The model, in float16 or bfloat16 on a GPU of compute capability 8.0 or more.
        mask: Keeps at most 2 of every 4 weights along the input axis, as ``prune(..., scope=n_of_m(2, 4))`` makes it.
        include: Names of the linear layers' weights to replace, as regular expressions; by default all that the mask
            covers.
        exclude: Names to leave dense, such as a classifier whose length is not a multiple of 16.

    Returns:
        What was replaced, in the order of the mask.

    Raises:
        MaskMismatchError: The mask is for another model.
        ValueError: A weight cannot be replaced: its mask is not 2 of 4, a kernel does not take its shape, number type
            or device, or it is tied or sharded. The model is unchanged.
        RuntimeError: A packed layer computes something else. The model is unchanged.
    """
    mask.check_fits(model)
    layers = {f"{n}.weight" if n else "weight": m for n, m in base_modules(model) if isinstance(m, nn.Linear)}
    covered = [name for name in mask if name in layers]
    chosen = select_names(covered, include=include, exclude=exclude, what="a linear layer's weight under the mask")
    if not chosen:
        raise ValueError(
            f"the mask must cover the weight of an nn.Linear to replace; received {len(mask)} entries, of which "
            f"{len(covered)} are, and none is left. Check include and exclude."
        )
    weights = named_weights(model)
    owners = Counter(id(weight) for weight in weights.values())
    weights = {name: weights[name] for name in chosen}
    check_plain(weights)
    _refuse("must not be sharded", weights, is_sharded, "Load the whole model on one GPU.")
    _refuse("must belong to one layer", weights, lambda w: owners[id(w)] > 1, "Exclude tied weights.")
    _check_mask(mask, chosen)
    _check_hardware(weights)
    packed, report = {}, []
    with torch.no_grad():
        for name, weight in weights.items():
            pruned = weight.masked_fill(~mask[name].to(weight.device), 0).contiguous()
            packed[name] = _packed(name, pruned)
            difference = _proven(name, pruned, packed[name], layers[name].bias)
            report.append(PackedWeight(name, difference, _bytes(packed[name]), weight.nbytes))
    for name, weight in packed.items():
        layers[name].weight = nn.Parameter(weight, requires_grad=False)
    return report


def _refuse(must: str, weights: Mapping[str, Tensor], wrong: Callable[[Tensor], bool], remedy: str) -> None:
    """Raise one error that names all weights of which something does not hold."""
    if names := [name for name, weight in weights.items() if wrong(weight)]:
        raise ValueError(f"a semi-structured weight {must}; received {first_names(names)}. {remedy}")


def _check_mask(mask: Mask, names: Iterable[str]) -> None:
    """Refuse masks that keep more than 2 of some 4, and lengths that no kernel takes."""
    entries = {name: mask[name] for name in names}
    _refuse(
        f"must have two lengths that are multiples of {_MULTIPLE}",
        entries,
        lambda entry: any(size % _MULTIPLE or not size for size in entry.shape),
        "Exclude these layers, and the others are packed.",
    )
    _refuse(
        "must keep at most 2 of every 4 weights along the input axis",
        entries,
        lambda entry: bool((entry.unflatten(1, (-1, 4)).sum(-1) > 2).any()),
        "Prune with scope=n_of_m(2, 4), or exclude these layers.",
    )


def _check_hardware(weights: Mapping[str, Tensor]) -> None:
    """Refuse devices and number types that have no kernel."""
    _refuse(
        "must be on a CUDA device of compute capability 8.0 or more",
        weights,
        lambda weight: weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) < _CAPABILITY,
        "Move the model there with model.to('cuda'); the ticket is not faster on other devices.",
    )
    _refuse(
        "must be float16 or bfloat16",
        weights,
        lambda weight: weight.dtype not in _DTYPES,
        "Convert the model with model.half() or model.bfloat16().",
    )


def _packed(name: str, weight: Tensor) -> Tensor:
    """Pack a weight; a kernel that wants another shape, or that is missing here, is one clear error."""
    try:
        return torch.sparse.to_sparse_semi_structured(weight)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"torch must have a semi-structured kernel for every weight; received {name!r} of shape "
            f"{list(weight.shape)}, which it refused: {str(error).splitlines()[0]}. Exclude this layer."
        ) from error


def _proven(name: str, weight: Tensor, packed: Tensor, bias: Tensor | None) -> float:
    """Return how far a packed layer is from exact outputs, if that is no more than its number type rounds."""
    difference, tolerance = 0.0, 4 * torch.finfo(weight.dtype).eps
    generator = torch.Generator().manual_seed(0)
    for height in _HEIGHTS:
        inputs = torch.randn(height, weight.shape[1], generator=generator).to(weight)
        try:
            outputs = functional.linear(inputs, packed, bias).double()
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"torch must run every semi-structured layer; received {name!r} with {height} rows of inputs, on which "
                f"it failed: {str(error).splitlines()[0]}. Exclude this layer."
            ) from error
        exact = functional.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
        scale = exact.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
        worst = float((outputs - exact).abs().max() / scale)
        if not worst <= tolerance:  # NaN is no proof either
            raise RuntimeError(
                f"a packed layer must compute the same outputs to {tolerance:.1e} of the largest; received a "
                f"difference of {worst:.1e} for {name!r}. Exclude this layer, and report it to torch."
            )
        difference = max(difference, worst)
    return difference


def _bytes(packed: Tensor) -> int:
    """Memory of a tensor, or of the tensors inside a packed one."""
    inner = getattr(packed, "__tensor_flatten__", None)
    return sum(getattr(packed, part).nbytes for part in inner()[0]) if inner else packed.nbytes
