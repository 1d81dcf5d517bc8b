"""Ticket: a mask and the weights it starts from, with where they come from. A folder anyone can load."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..mask import Mask, MaskMismatchError
from ..mask_file import CONFIG_NAME, MaskFileError, read_mask, stage_mask
from ..rewind import Snapshot
from ..staging import staged_folder
from .card import ticket_card
from .run_folder import REWIND_NAME


@dataclass(frozen=True)
class Ticket:
    """A lottery ticket.

    Attributes:
        mask: Which weights stay.
        rewind: The weights and buffers that training starts from.
        info: Where it comes from, in JSON terms: ``level``, ``settings``, ``history`` of (level, sparsity, metrics),
            ``architecture``, or your own; kept in ``mask_config.json``.
        model_config: Configuration to build the model from; None if it is not a transformers model.
    """

    mask: Mask
    rewind: Snapshot
    info: dict[str, Any] = field(default_factory=dict)
    model_config: PreTrainedConfig | None = None

    def apply_(self, model: nn.Module) -> None:
        """Put ``model`` where the ticket starts: the rewind weights, pruned ones exactly zero, in place.

        Raises:
            MaskMismatchError: The model is another one.
        """
        self.mask.check_fits(model)
        self.rewind.restore_(model)
        self.mask.apply_(model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write mask, rewind weights, model configuration and card into ``folder``; nothing in it is a pickle.

        A new folder appears in one step. In an existing one files are replaced, but for a README.md.
        """
        self.mask.check_fits(self.rewind.tensors)
        keep_card = (Path(folder) / "README.md").exists()
        with staged_folder(folder, last=CONFIG_NAME) as stage:
            self.rewind.save(stage / REWIND_NAME)
            if self.model_config is not None:
                self.model_config.save_pretrained(stage)
            if not keep_card:
                (stage / "README.md").write_text(ticket_card(self.mask, self.info))
            rewind = {"step": self.rewind.step, "sha256": self.rewind.sha256()}
            has_config = self.model_config is not None  # a config.json may also be of what lay there before
            stage_mask(stage, self.mask, {"rewind": rewind, "model_config": has_config, "info": self.info})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Ticket:
        """Load and check a ticket from a folder.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, of a newer format, or from another save.
        """
        folder = Path(folder)
        entries, config = read_mask(folder)
        rewind = Snapshot.load(folder / REWIND_NAME)
        stated = config.get("rewind", {}).get("sha256") if isinstance(config.get("rewind"), dict) else None
        if stated is not None and stated != rewind.sha256():
            raise MaskFileError(
                f"{folder / REWIND_NAME} must hold the weights that {CONFIG_NAME} states; received others. "
                "The file is damaged or from another save."
            )
        mask = Mask(entries)
        try:
            mask.check_fits(rewind.tensors)
        except MaskMismatchError as error:
            raise MaskFileError(f"{folder}: mask and rewind weights must fit each other; {error}") from error
        info = config.get("info", {})
        model_config = None
        if config.get("model_config") is True:
            from transformers import AutoConfig

            model_config = AutoConfig.from_pretrained(folder)
        return cls(mask, rewind, info, model_config)
