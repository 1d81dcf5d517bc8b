"""Reference: the start of a ticket, named instead of stored, and proven by its hash."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, set_seed

from ...networks.generators import kept_generators
from ...networks.names import base_of
from ...storage.encoding import MaskFileError
from ...storage.hub_mixin import REPO_ID
from ...training.snapshot import Snapshot
from .transfer import base_model

_KINDS = ("pretrained", "seed")


class RewindMismatchError(ValueError):
    """A model is not at the weights that a ticket starts from."""


@dataclass(frozen=True)
class Reference:
    """The weights that a ticket starts from, by reference: the user builds the model, and the hash proves it.

    Attributes:
        kind: ``"pretrained"`` for a model on the Hub; ``"seed"`` for one that is built from the ticket's configuration
            right after ``transformers.set_seed(seed)``.
        sha256: Hash of the weights and buffers, as :meth:`hf_lottery.Snapshot.sha256` gives it.
        repo_id: The repository, for the kind ``"pretrained"``.
        revision: The commit of the repository, for the kind ``"pretrained"``.
        seed: The seed, for the kind ``"seed"``.
        step: Optimizer steps taken. It is 0, as weights after training cannot be referred to.
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
        if self.repo_id is not None and not REPO_ID.fullmatch(str(self.repo_id)):
            raise ValueError(
                f"repo_id must be the id of a repository on the Hub, which others can load; received {self.repo_id!r}. "
                "Store the weights by value, or push the model and name its repository."
            )
        if self.step:
            raise ValueError(f"a reference must be to weights before training; received step {self.step}.")

    @classmethod
    def to(cls, start: Snapshot, model: nn.Module, seed: int) -> Reference:
        """Refer to the weights that a model began with, by its repository and commit or by the seed it was built with.

        Either is tried out: a second model is loaded from the commit, or built with the seed, and must be equal.

        Args:
            start: The weights before training.
            model: The model, trained or not. Only its class and configuration count.
            seed: The seed that ``transformers.set_seed`` got right before the model was built.

        Raises:
            ValueError: The weights are from after training, or come from neither a repository nor the seed.
        """
        if isinstance(model := base_of(model), PreTrainedModel):
            digest, kind, config = start.sha256(), cast(Any, type(model)), copy.deepcopy(model.config)
            with kept_generators():  # both draw numbers, for a new head or for all weights
                # The cache does not say which of its commits was loaded, and another may hold no weights.
                with suppress(OSError):
                    if (base := base_model(config)) and base["revision"]:
                        again = kind.from_pretrained(base["id"], revision=base["revision"], config=config)
                        if Snapshot.capture(again).sha256() == digest:
                            return cls("pretrained", digest, base["id"], base["revision"], step=start.step)
                set_seed(seed)
                again = kind(config)
            if Snapshot.capture(again).sha256() == digest:
                return cls("seed", digest, seed=seed, step=start.step)
        raise ValueError(
            f"weights by reference must be those of a commit on the Hub, or of a {type(model).__name__} built right "
            f"after set_seed({seed}); received others. Store them by value; a search "
            "can be resumed without rewind_by_reference."
        )

    def restore_(self, model: nn.Module) -> None:
        """Check that the model is at these weights, which are not stored; nothing is changed in place.

        Raises:
            RewindMismatchError: The model is at other weights.
        """
        found = Snapshot.capture(model).sha256()
        if found != self.sha256:
            raise RewindMismatchError(
                f"the model must be at the weights that the ticket starts from, sha256 {self.sha256[:12]}; received "
                f"{found[:12]}. Build it by {self}."
            )

    def __repr__(self) -> str:
        set_fields = ", ".join(f"{key}={value!r}" for key, value in self.to_dict().items())
        return f"Reference({set_fields})"

    def __str__(self) -> str:
        if self.kind == "pretrained":
            return f"from_pretrained({self.repo_id!r}, revision={self.revision!r})"
        return f"set_seed({self.seed}) and from_config(ticket.model_config)"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, in JSON terms."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reference:
        """Make a reference from the fields that :meth:`to_dict` returned.

        Raises:
            MaskFileError: The fields are not those of a reference.
        """
        texts = [values.get(key) for key in ("kind", "sha256", "repo_id", "revision")]
        numbers = [values.get(key) for key in ("seed", "step")]
        try:
            if any(not isinstance(text, str | None) for text in texts) or any(
                type(number) not in (int, type(None)) for number in numbers
            ):
                raise TypeError("its names must be texts, and its seed and step integers")
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise MaskFileError(
                f"rewind must be a reference to weights; received {values!s:.80}: {error!s:.200}"
            ) from error
