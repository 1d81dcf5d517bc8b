"""Match: what a matching returns, the permutation that it found and the report of how well it did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..storage.atomic import staged_folder
from ..storage.hub_mixin import HubMixin
from ..symmetry.permutation import Permutation
from ..symmetry.permutation_file import CONFIG_NAME
from ..symmetry.structure import Structure
from .match_report import REPORT_NAME, MatchReport, read_match_report, write_match_report

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..storage.hub_mixin import Where


@dataclass(frozen=True, repr=False)
class Match(HubMixin):
    """What a matching found.

    Attributes:
        permutation: The permutation that carries the source to the target.
        report: How well each group was matched.

    Example:
        >>> import torch
        >>> from hf_lottery import discover, permute_, weight_matching
        >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2)) for _ in "ab")
        >>> spec = discover(a, (torch.randn(5, 4),))
        >>> found = weight_matching(spec, source=a, target=b)
        >>> permute_(a, found.permutation)
        >>> found.report.converged
        True
    """

    permutation: Permutation
    report: MatchReport

    FILES: ClassVar[tuple[str, ...]] = (*Permutation.FILES, REPORT_NAME)

    def __call__(self, *args: Any) -> NoReturn:
        """Say how to permute something, since a match itself permutes nothing."""
        raise TypeError(
            "a match must not be called; it holds the permutation. Write match.permutation(mask) for a mask or a "
            "state dict, and permute_(model, match.permutation) for a model."
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the permutation's files and ``match_report.json`` into ``folder``, in one step.

        ``Permutation.from_pretrained`` reads the same folder too.
        """
        with staged_folder(folder, last=CONFIG_NAME) as stage:
            self.permutation.save_pretrained(stage)
            write_match_report(stage, self.report)

    @classmethod
    def from_pretrained(cls, source: str | Path, spec: Structure, **where: Unpack[Where]) -> Match:
        """Load a match.

        Args:
            source: A folder written by :meth:`save_pretrained`, or the id of a repository on the Hub.
            spec: The spec of the model at hand.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            SpecMismatchError: The match is for another spec.
            SymmetryError: A file is malformed, damaged, newer than this library, or from another save.
        """
        folder = cls._folder(source, **where)
        permutation = Permutation.from_pretrained(folder, spec)
        return cls(permutation, read_match_report(folder, permutation))

    def __repr__(self) -> str:
        return f"Match({self.permutation!r})\n{self.report!r}"

    def _repr_html_(self) -> str:
        return f"<p>Match({self.permutation!r})</p>\n{self.report._repr_html_()}"
