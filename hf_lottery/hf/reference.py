"""Reference: rewind weights that are named instead of stored, and proven by their hash."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..mask_file import MaskFileError
from ..rewind import Snapshot

_KINDS = ("pretrained", "seed")


class RewindMismatchError(ValueError):
    """A model is not at the weights that a ticket starts from."""


@dataclass(frozen=True)
class Reference:
    """The weights a ticket starts from, by reference: whoever loads it builds the model, and the hash proves it.

    Attributes:
        kind: ``"pretrained"``, a model on the Hub; ``"seed"``, one built from the ticket's configuration right after
            ``transformers.set_seed(seed)``.
        sha256: Of the weights and buffers, as :meth:`hf_lottery.Snapshot.sha256`.
        repo_id: Of ``"pretrained"``: the repository.
        revision: Of ``"pretrained"``: its commit.
        seed: Of ``"seed"``.
        step: Optimizer steps taken: 0, as weights after training cannot be referred to.
    """

    kind: str
    sha256: str
    repo_id: str | None = None
    revision: str | None = None
    seed: int | None = None
    step: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"a reference must be one of {', '.join(_KINDS)}; received {self.kind!r}.")
        if (self.kind == "pretrained") == (self.repo_id is None) or (self.kind == "seed") == (self.seed is None):
            raise ValueError(
                f"a reference must name a repo_id (pretrained) or a seed (seed), not both; received {self.kind} with "
                f"repo_id={self.repo_id!r}, seed={self.seed!r}."
            )
        if self.step:
            raise ValueError(f"a reference must be to weights before training; received step {self.step}.")

    def restore_(self, model: nn.Module) -> None:
        """Prove that the model is at these weights; nothing is changed.

        Raises:
            RewindMismatchError: It is not.
        """
        found = Snapshot.capture(model).sha256()
        if found != self.sha256:
            raise RewindMismatchError(
                f"the model must be at the weights that the ticket starts from, sha256 {self.sha256[:12]}; received "
                f"{found[:12]}. Build it by {self}."
            )

    def __str__(self) -> str:
        if self.kind == "pretrained":
            return f"from_pretrained({self.repo_id!r}, revision={self.revision!r})"
        return f"set_seed({self.seed}) and from_config(ticket.model_config)"

    def to_dict(self) -> dict[str, Any]:
        """In JSON terms, without what is not set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reference:
        """What :meth:`to_dict` made.

        Raises:
            MaskFileError: Something else.
        """
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise MaskFileError(f"rewind must be a reference to weights; received {values}: {error}") from error
