"""Shrunk: a smaller network, and what was cut to make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..networks.display import html_table, text_table
from ..symmetry.structure import SHOWN
from .attributes import Change

_HEADER = ("group", "size", "kept", "kept whole because")


@dataclass(frozen=True)
class GroupCut:
    """What became of one group.

    Attributes:
        name: The group's name.
        size: How many units it had, of each index of its parents.
        kept: How many it has now.
        reason: Why it was kept whole although units of it were to be cut; None if they were cut.
        proven: Whether the outputs are those of the large network without what the cut units send. It is False for a
            group that was cut because ``retrain`` names it.
    """

    name: str
    size: int
    kept: int
    reason: str | None = None
    proven: bool = True


@dataclass(repr=False)
class Shrunk:
    """A smaller network, and what was cut; prints as a table.

    Attributes:
        model: The smaller network.
        report: One row for each group of which units were to be cut.
        units: Group that was cut -> its units, True keeps.
        changes: The attributes of modules that were set.
        shapes: Name of each parameter and buffer that was cut -> its old and its new shape.
        parameters: How many parameters the large network and the small one have.
        error: The largest change of an output in float64, and in the model's own precision.
        inputs: Name and shape of the inputs that it was proven on.
        config_fits: Whether the model's class, built from its configuration, is this network. None if the model has no
            configuration.
    """

    model: nn.Module
    report: list[GroupCut]
    units: dict[str, Tensor]
    changes: list[Change]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    parameters: tuple[int, int]
    error: tuple[float, float]
    inputs: list[str] = field(default_factory=list)
    config_fits: bool | None = None

    @property
    def refused(self) -> dict[str, str]:
        """The groups that were kept whole although units of them were to be cut, with the reason."""
        return {row.name: row.reason for row in self.report if row.reason}

    def __repr__(self) -> str:
        """Return a table with one line per group; a long table is cut."""
        return f"{self._title()}\n{text_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>\n{html_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _title(self) -> str:
        before, after = self.parameters
        cut = sum(row.reason is None for row in self.report)
        return (
            f"Shrunk({before:,} to {after:,} parameters, {cut} of {len(self.report)} groups cut, "
            f"largest change of an output: {self.error[0]:.1e} in float64, {self.error[1]:.1e} in its own precision, "
            f"inputs: {' and '.join(self.inputs)})"
        )

    def _rows(self) -> Sequence[tuple[str, ...]]:
        return [(r.name, str(r.size), str(r.kept), r.reason or ("" if r.proven else "(cut, to be retrained)"))
                for r in sorted(self.report, key=lambda row: row.reason is None)]  # fmt: skip


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
