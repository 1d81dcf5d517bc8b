"""Shrunk: a smaller network, and what was cut to make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..networks.display import html_table, text_table
from ..networks.names import named_state, unwrap
from ..storage.atomic import staged_folder
from ..storage.checksums import check_sha256, sha256_of
from ..storage.encoding import MaskFileError
from ..storage.json_files import read_sealed, seal_json
from ..symmetry.errors import SpecMismatchError
from ..symmetry.structure import SHOWN
from ..version import __version__
from .attributes import Attributes, Change
from .configuration import FieldChange, has_fields, put_fields_
from .copies import copied, named_modules
from .unit_file import units_to_json

SHRUNK_NAME = "shrunk.json"
WEIGHTS_NAME = "shrunk.safetensors"
FORMAT_VERSION = 2

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
        error: The largest change of an output in float64, and in the model's own precision; that is NaN if groups were
            cut that must be retrained. The change in float64 is that of the other groups.
        inputs: Name and shape of the inputs that it was proven on.
        fingerprint: The fingerprint of the spec of the large network.
        config_fits: Whether the model has a configuration that says its sizes, so that ``save_pretrained`` and
            ``from_pretrained`` work as always.
        fields: The numbers of that configuration that are others than those of the large one.
    """

    model: nn.Module
    report: list[GroupCut]
    units: dict[str, Tensor]
    changes: list[Change]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    parameters: tuple[int, int]
    error: tuple[float, float]
    inputs: list[str]
    fingerprint: str
    config_fits: bool = False
    fields: list[FieldChange] = field(default_factory=list)

    def save(self, folder: str | Path) -> None:
        """Write what was cut and the small network's tensors into a folder, in one step, without pickle.

        :func:`load_shrunk` puts them into a network of the large architecture.
        """
        with staged_folder(folder, last=SHRUNK_NAME) as stage:
            tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in named_state(self.model).items()}
            save_file(tensors, stage / WEIGHTS_NAME)
            config = {
                "format_version": FORMAT_VERSION,
                "library_name": "hf_lottery",
                "library_version": __version__,
                "units": units_to_json(self.units, self.fingerprint),
                "shapes": {name: list(map(list, pair)) for name, pair in self.shapes.items()},
                "changes": [[change.module, list(change.path), change.value] for change in self.changes],
                "fields": [[list(path), value] for path, value in self.fields],
                "sha256": sha256_of(stage / WEIGHTS_NAME),
            }
            (stage / SHRUNK_NAME).write_bytes(seal_json(config, what=SHRUNK_NAME))

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
        own = "" if isnan(self.error[1]) else f", {self.error[1]:.1e} in its own precision"
        return (
            f"Shrunk({before:,} to {after:,} parameters, {cut} of {len(self.report)} groups cut, "
            f"largest change of an output: {self.error[0]:.1e} in float64{own}, "
            f"inputs: {' and '.join(self.inputs)})"
        )

    def _rows(self) -> Sequence[tuple[str, ...]]:
        return [(r.name, str(r.size), str(r.kept), r.reason or ("" if r.proven else "(cut, to be retrained)"))
                for r in sorted(self.report, key=lambda row: row.reason is None)]  # fmt: skip


def load_shrunk(folder: str | Path, model: nn.Module) -> nn.Module:
    """Load a small network that :meth:`Shrunk.save` wrote.

    Args:
        folder: The folder.
        model: A network of the large architecture, which may be on the meta device; not changed. Its weights do not
            count.

    Returns:
        The small network, on the CPU.

    Raises:
        FileNotFoundError: A file is missing.
        MaskFileError: A file is malformed, damaged, or newer than this library.
        SpecMismatchError: The model is of another architecture.
    """
    folder, inner = Path(folder), unwrap(model)
    for name in (SHRUNK_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"a small network must have {name}; received {folder}. Check the path.")
    config = read_sealed(folder / SHRUNK_NAME, version=FORMAT_VERSION, error=MaskFileError)
    shapes, changes, fields = _shapes(folder, config), _changes(folder, config), _fields(folder, config)
    check_sha256(folder / WEIGHTS_NAME, str(config.get("sha256")), SHRUNK_NAME, MaskFileError)
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise MaskFileError(f"{folder / WEIGHTS_NAME} must be a safetensors file; received {error!s:.200}.") from error
    large = shapes_of(named_state(inner, numbers=False))
    stated = {name: shapes.get(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    differ = [name for name in {**large, **stated} if large.get(name) != stated.get(name)]
    unknown = [change for change in changes if not _is_size(inner, change)]
    if differ or unknown or not has_fields(inner, fields):
        attribute = f"the attribute {unknown[0].path} of {unknown[0].module!r}" if unknown else "its configuration"
        first = repr(differ[0]) if differ else attribute
        raise SpecMismatchError(
            f"the model must be of the architecture that {folder} was cut from; received another one, which differs in "
            f"{first:.200}. Build the large model from its configuration."
        )
    small = copied(inner, tensors)
    Attributes(small).set(changes)
    put_fields_(small, inner, fields)
    return small


def _shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that tensors had before they were cut."""
    shapes = config.get("shapes")
    if not isinstance(shapes, dict) or not all(isinstance(pair, list) and len(pair) == 2 for pair in shapes.values()):
        raise MaskFileError(f"{folder / SHRUNK_NAME}: shapes must be pairs by name; received {shapes!r:.80}.")
    return {name: tuple(old) if isinstance(old, list) else () for name, (old, _) in shapes.items()}


def _changes(folder: Path, config: Mapping[str, Any]) -> list[Change]:
    found, changes = config.get("changes"), []
    for entry in found if isinstance(found, list) else [None]:
        match entry:
            case [str(module), [*path], value] if all(isinstance(part, str) for part in path) and _are_sizes(value):
                changes.append(Change(module, tuple(path), tuple(value) if isinstance(value, list) else value))
            case _:
                raise MaskFileError(
                    f"{folder / SHRUNK_NAME}: changes must be modules, attributes and sizes; received {entry!r:.80}."
                )
    return changes


def _fields(folder: Path, config: Mapping[str, Any]) -> list[FieldChange]:
    found, fields = config.get("fields", []), []
    for entry in found if isinstance(found, list) else [None]:
        match entry:
            case [[*path], int(value)] if path and all(isinstance(part, str | int) for part in path):
                fields.append((tuple(path), value))
            case _:
                raise MaskFileError(
                    f"{folder / SHRUNK_NAME}: fields must be places in a configuration, and numbers; received "
                    f"{entry!r:.80}."
                )
    return fields


def _are_sizes(value: Any) -> bool:
    return all(type(size) is int and 0 <= size < 2**31 for size in (value if isinstance(value, list) else [value]))


def _is_size(model: nn.Module, change: Change) -> bool:
    """Tell whether an attribute of a model is a size, so that nothing else is overwritten."""
    value: Any = named_modules(model).get(change.module)
    for part in change.path:
        value = vars(value).get(part) if hasattr(value, "__dict__") else None
    return 0 < len(change.path) <= 2 and _are_sizes(list(value) if isinstance(value, tuple) else value)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
