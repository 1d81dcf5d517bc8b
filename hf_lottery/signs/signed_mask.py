"""SignedMask: a mask with the sign of every weight that it keeps, and its transfer to another initialization.

References:
    Oh, Baik and Lee, 2025, "Find A Winning Sign: Sign Is All We Need to Win the Lottery", arXiv:2504.05357.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..masks.file import CONFIG_NAME, MASK_NAME
from ..masks.mask import Mask, MaskMismatchError
from ..networks.display import SHOWN_ROWS, escaped, first_names, html_table
from ..networks.names import named_parameters, named_weights
from ..networks.numbers import check_plain
from ..networks.shards import is_sharded, whole
from ..storage.hub_mixin import HubMixin
from .file import read_signs, write_signs
from .magnitudes import magnitudes_of, spreads
from .norms import norm_parameters

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where

ZEROS = ("keep", "std", "source_median")


class Transfer(NamedTuple):
    """What :meth:`SignedMask.transfer_` did, as names of parameters.

    Attributes:
        signed: Parameters that have their signs now.
        zero: Those of ``signed`` whose magnitudes are all zero; with ``zeros="keep"`` their signs are lost.
        skipped: Parameters that the model lacks or has in another shape, such as the head of another label set.
        unsigned: Parameters of the model that the signed mask does not know, except those of norms.
    """

    signed: tuple[str, ...]
    zero: tuple[str, ...]
    skipped: tuple[str, ...]
    unsigned: tuple[str, ...]

    def __repr__(self) -> str:
        lines = [f"  {field}: {len(names)} ({first_names(names, limit=3)})" for field, names in self._asdict().items()]
        return "\n".join(["Transfer", *lines])


class SignAgreement(NamedTuple):
    """Fraction of the kept weights whose signs are equal.

    Attributes:
        overall: The fraction among all kept weights.
        layers: Parameter name -> the fraction in that parameter.
    """

    overall: float
    layers: dict[str, float]

    def __repr__(self) -> str:
        return f"SignAgreement(overall={self.overall:.4f}, {len(self.layers)} layers)"

    def _repr_html_(self) -> str:
        rows = [(name, f"{fraction:.4f}") for name, fraction in self.layers.items()]
        return f"<p>{escaped(self)}</p>\n" + html_table(("parameter", "equal signs"), rows, limit=SHOWN_ROWS)


class SignedMask(Mapping[str, Tensor], HubMixin):
    """A mask and the signs of a network: parameter name -> int8 tensor of -1, 0, +1.

    Covers every parameter except those of norms: pruned or not, biases, embeddings and head included. A pruned weight
    has sign 0. A kept weight may have sign 0 too, if it is exactly 0. Treat it as immutable.

    Args:
        mask: Which weights stay.
        signs: Parameter name -> int8 tensor of the parameter's shape; the tensors are copied.
        medians: Parameter name -> median magnitude in the network that the signs are from, for
            ``transfer_(zeros="source_median")``.

    Raises:
        TypeError: Signs are not int8.
        ValueError: A sign is not -1, 0 or +1, or a median is not a finite magnitude.
        MaskMismatchError: Mask and signs have different shapes, or a pruned weight has a sign.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[-0.5, 0.25]]))
        >>> signed = SignedMask.from_model(model, Mask({"weight": torch.tensor([[True, False]])}))
        >>> signed["weight"].tolist()
        [[-1, 0]]
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[0.125, 0.75]]))
        >>> _ = signed.transfer_(model)
        >>> model.weight.tolist()
        [[-0.125, 0.0]]
    """

    FILES = (CONFIG_NAME, MASK_NAME)
    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value and tensors are mutable

    def __init__(self, mask: Mask, signs: Mapping[str, Tensor], *, medians: Mapping[str, float] | None = None):
        for name, sign in signs.items():
            if not isinstance(sign, Tensor) or sign.dtype != torch.int8:
                received = sign.dtype if isinstance(sign, Tensor) else type(sign).__name__
                raise TypeError(f"the signs of {name!r} must be an int8 tensor; received {received}. Try from_model.")
            if sign.numel() and (sign.min() < -1 or sign.max() > 1):
                extreme = max(sign.min().item(), sign.max().item(), key=abs)
                raise ValueError(f"the signs of {name!r} must be -1, 0 or +1; received {extreme}.")
        for name, entry in mask.items():
            if name not in signs or signs[name].shape != entry.shape:
                received = list(signs[name].shape) if name in signs else "none"
                raise MaskMismatchError(
                    f"the signs of {name!r} must have the mask's shape {list(entry.shape)}; received {received}. "
                    "Mask and signs are of different networks."
                )
            if count := int((signs[name].cpu()[~entry] != 0).sum()):
                raise MaskMismatchError(
                    f"a pruned weight must have sign 0; received {count} others in {name!r}. "
                    "Mask and signs are of different networks."
                )
        self.mask = mask
        self.medians = {name: float(median) for name, median in (medians or {}).items()}
        if wrong := [name for name, median in self.medians.items() if not 0 <= median < math.inf]:
            raise ValueError(
                f"the median of {wrong[0]!r} must be a finite magnitude; received {self.medians[wrong[0]]}."
            )
        self._signs = {name: sign.detach().to("cpu", copy=True).contiguous() for name, sign in signs.items()}

    @classmethod
    def from_model(cls, model: nn.Module, mask: Mask, *, norms: Mapping[str, Tensor] | None = None) -> SignedMask:
        """Take the signs of a network under a mask.

        Args:
            model: The trained network.
            mask: Which weights stay.
            norms: The norm parameters by name, which get no sign. By default :func:`norm_parameters` of the model.

        Raises:
            MaskMismatchError: The mask is for another model.
            ValueError: A weight is not finite, complex, quantised, or in a sparse layout.
        """
        mask.check_fits(model)
        norms = norm_parameters(model) if norms is None else norms
        signed = {name: parameter for name, parameter in named_parameters(model).items() if name not in norms}
        _check_signs(signed)
        signs, medians = {}, {}
        for name, parameter in signed.items():
            weight = whole(parameter).cpu()
            if not weight.isfinite().all():
                raise ValueError(f"{name!r} must have finite weights; received NaN or infinite ones.")
            signs[name] = weight.sign().to(torch.int8)
            if name in mask:
                signs[name] *= mask[name]
            size = weight[signs[name] != 0].abs()
            medians[name] = float(np.median(size.double().numpy())) if size.numel() else 0.0
        if aliases := mask.keys() - signs.keys():
            raise MaskMismatchError(
                f"the mask must not cover norms, and must name a tied parameter as named_parameters() does; "
                f"received {min(aliases)!r}."
            )
        return cls(mask, signs, medians=medians)

    @classmethod
    def from_pretrained(cls, source: str | Path, **where: Unpack[Where]) -> SignedMask:
        """Load a signed mask.

        Args:
            source: A folder written by :meth:`save_pretrained`, or the id of a repository on the Hub.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, of a newer format, or holds a mask without signs.
        """
        entries, signs, medians = read_signs(cls._folder(source, **where))
        return cls(Mask(entries), signs, medians=medians)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``mask_config.json`` and ``mask.safetensors``: one bit for each weight, and one for each kept sign."""
        write_signs(folder, self.mask, self._signs, self.medians)

    def __getitem__(self, name: str) -> Tensor:
        return self._signs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._signs)

    def __len__(self) -> int:
        return len(self._signs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SignedMask):
            return NotImplemented
        return (
            self.mask == other.mask
            and self.keys() == other.keys()
            and all(torch.equal(sign, other[name]) for name, sign in self.items())
        )

    def __repr__(self) -> str:
        signs = sum(int((sign != 0).sum()) for sign in self.values())
        return f"SignedMask({len(self)} parameters, {signs:,} signs, {self.mask!r})"

    def _repr_html_(self) -> str:
        rows = [
            (name, list(sign.shape), *(f"{int((sign == value).sum()):,}" for value in (1, -1, 0)))
            for name, sign in self.items()
        ]
        table = html_table(("parameter", "shape", "positive", "negative", "zero"), rows, limit=SHOWN_ROWS)
        return f"<p>{escaped(self)}</p>\n{table}"

    def transfer_(
        self, model: nn.Module, *, magnitudes: str | nn.Module | Mapping[str, Tensor] = "init", zeros: str = "keep"
    ) -> Transfer:
        """Give a fresh network the signs, in place: kept weights become ``|init| * sign``, all others exactly zero.

        Norm parameters and buffers do not change; in a fresh network they are at their initial values. Afterwards train
        under ``signed.mask``. The signs are free to change.

        Args:
            model: A network of the same architecture, from any seed.
            magnitudes: ``"init"`` takes the network's own magnitudes. ``"constant"`` takes the standard deviation of
                each parameter's own values, or their magnitude if they do not vary. A network or mapping gives its
                values, for example a pretrained one.
            zeros: What to do with a parameter whose magnitudes are all zero, as those of nearly all biases of
                transformers are at first. ``"keep"`` leaves it, as in the paper, so that its signs are lost. ``"std"``
                sets it to the standard deviation of the other parameters of its module (of all parameters, if none of
                these varies). ``"source_median"`` sets it to the median magnitude that it had in the network that the
                signs are from.

        Returns:
            What was done. A warning lists parameters that were skipped.

        Raises:
            ValueError: An option is unknown, there are no medians for ``"source_median"``, or a weight is complex,
                quantised, or in a sparse layout; nothing was changed.
            NotImplementedError: The model is sharded already.
            MaskMismatchError: The mask is for another model, or the model ties parameters that have signs of their own;
                nothing was changed.

        Reference:
            Oh et al., 2025, arXiv:2504.05357. Their code derives the mask from ``sign != 0``, which prunes a kept
            weight that happens to be 0, and it loses the signs of all but one parameter outside the mask.
        """
        if zeros not in ZEROS:
            raise ValueError(f"zeros must be one of {', '.join(ZEROS)}; received {zeros!r}.")
        if zeros == "source_median" and self.keys() - self.medians.keys():
            raise ValueError("zeros='source_median' needs the medians; received none. Make the mask with from_model.")
        self.mask.check_fits(model)
        named = named_weights(model)
        _check_signs({name: named[name] for name in self if name in named})
        if any(map(is_sharded, named.values())):
            raise NotImplementedError("signs must be given before a model is sharded; received DTensors.")
        fitting = [name for name, sign in self.items() if name in named and named[name].shape == sign.shape]
        if len({id(named[name]) for name in fitting}) < len(fitting):
            owners = [id(named[name]) for name in fitting]
            tied = next(name for name, owner in zip(fitting, owners, strict=True) if owners.count(owner) > 1)
            raise MaskMismatchError(
                f"two names with signs must be two parameters; received {tied!r}, which the model ties to another."
            )
        sizes = {name: size.detach().abs() for name, size in magnitudes_of(magnitudes, named, fitting).items()}
        zero = [name for name in fitting if not sizes[name].any()]
        if zeros != "keep":
            spread = self.medians if zeros == "source_median" else spreads(model, zero)
            sizes.update((name, torch.full_like(sizes[name], spread[name])) for name in zero)
        with torch.no_grad():
            for name in fitting:
                sign = self[name].to(sizes[name])
                named[name].copy_(torch.where(sign == 0, sign, sizes[name] * sign))  # infinity times 0 is NaN
        done = {id(named[name]) for name in fitting}
        norms = norm_parameters(model)
        unsigned = tuple(n for n, p in named.items() if id(p) not in done and n not in norms)
        skipped = tuple(name for name in self if name not in fitting)
        if skipped:
            warnings.warn(
                f"{len(skipped)} parameters got no sign, as the model has no parameter of that name and shape: "
                f"{', '.join(skipped[:5])}.",
                stacklevel=2,
            )
        return Transfer(tuple(fitting), tuple(zero), skipped, unsigned)

    def agreement(self, other: SignedMask | nn.Module) -> SignAgreement:
        """Measure how many signs of the kept weights another network has too.

        Weights count if this mask keeps them and they have a sign here. Chance is about one half.

        Args:
            other: A network of the same names and shapes, or its signed mask.

        Raises:
            MaskMismatchError: The other is for another model.
        """
        return sign_agreement(self.mask, self, other if isinstance(other, SignedMask) else named_weights(other))

    def shuffled(self, seed: int) -> SignedMask:
        """Shuffle the signs within each parameter: the control that keeps how many of each kind a parameter has."""
        generator = torch.Generator().manual_seed(seed)

        def shuffle(signs: Tensor) -> Tensor:
            return signs[torch.randperm(len(signs), generator=generator)]

        return self._with(shuffle)

    def randomized(self, seed: int) -> SignedMask:
        """Draw every sign anew, -1 or +1 with equal chance: the control that keeps only the mask."""
        generator = torch.Generator().manual_seed(seed)

        def draw(signs: Tensor) -> Tensor:
            return torch.randint(0, 2, signs.shape, generator=generator, dtype=torch.int8) * 2 - 1

        return self._with(draw)

    def _with(self, change) -> SignedMask:
        signs = {name: sign.clone() for name, sign in self.items()}
        for sign in signs.values():
            sign[sign != 0] = change(sign[sign != 0])
        return SignedMask(self.mask, signs, medians=self.medians)


def sign_agreement(mask: Mask, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> SignAgreement:
    """Measure how many signs two networks share where a mask keeps weights.

    Args:
        mask: Which weights count. Those that are 0 in ``before`` do not.
        before: Weights or signs by name.
        after: Weights or signs of the other network. 1 minus the agreement is the rate of flipped signs.

    Raises:
        MaskMismatchError: Weights are missing or of another shape.
    """
    mask.check_fits(before)
    mask.check_fits(after)
    equal = count = 0
    layers = {}
    for name, kept in mask.items():
        old, new = (whole(weights[name].detach().sign()).cpu() for weights in (before, after))
        counted = kept & (old != 0)
        same, signs = int(((old == new) & counted).sum()), int(counted.sum())
        layers[name] = same / signs if signs else 1.0
        equal, count = equal + same, count + signs
    return SignAgreement(equal / count if count else 1.0, layers)


def _check_signs(weights: Mapping[str, Tensor]) -> None:
    """Check that weights have signs that can be read and written."""
    check_plain(weights)
    for name, weight in weights.items():
        if weight.is_complex():
            raise ValueError(
                f"{name!r} must have real weights; received {weight.dtype}, which has no signs. Write the layer with "
                "two real parameters."
            )
