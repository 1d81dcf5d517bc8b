"""The tickets of a search: make that of the last level, and push those of all levels to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

from torch import nn
from transformers import Trainer

from ...masks.mask_series import MaskSeries
from ...storage.hub_mixin import HubError
from ...training.snapshot import Snapshot
from ..hub.about import changed_settings, surroundings
from ..hub.reference import Reference
from ..hub.ticket import Ticket
from .run_folder import RunFolder


def last_ticket(
    run: RunFolder,
    trainer: Trainer,
    start: Snapshot | Reference,
    *,
    settings: Mapping[str, Any],
    history: list[dict[str, Any]],
    about: Mapping[str, Any],
) -> Ticket:
    """Make the ticket of a search's last level.

    Args:
        run: The search's folder, which holds the masks of all levels.
        trainer: The search's trainer.
        start: The weights that the ticket starts from, or a reference to them.
        settings: The settings of the search.
        history: One record for each level.
        about: What else is known of how it was made; see :mod:`hf_lottery.hf.hub.about`.
    """
    args, levels = trainer.args, len(history)
    known = {field.name for field in fields(args)}
    others = [name for name in settings if name not in known and settings[name] is not None]
    changed = [*changed_settings(settings, type(args)), *about.get("changed", others)]
    about = {**surroundings(processes=args.world_size), **about, "changed": changed}
    info = {"level": levels - 1, "settings": dict(settings), "history": history, "about": about}
    series = MaskSeries(run.read_mask(number) for number in range(levels))
    processing = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    model, mask = cast(nn.Module, trainer.model), run.read_mask(levels - 1)  # a series does not hold units
    return Ticket.of(model, mask, start, info=info, series=series, processing=processing, token=args.hub_token)


def push_levels(ticket: Ticket, run: RunFolder, repo_id: str, *, private: bool | None, token: str | None) -> None:
    """Push each level's ticket in its own commit, with a tag such as ``level-03``; the last level comes last.

    The weights that levels rewind to are one file for all of them. A masked model would be another one at every level,
    so only the last level has it.

    Raises:
        HubError: The Hub cannot be reached or refuses. The levels before that one were pushed.
    """
    assert ticket.series is not None
    for level in range(len(ticket.series)):
        try:
            push_level(_level_ticket(ticket, run, level), repo_id, private=private, token=token)
        except HubError as error:
            before = f"The levels before {level} were pushed" if level else "No level was pushed"
            raise HubError(
                f"level {level}: {error} {before}; the search is whole in {run.root}: resume it to push again.",
                status=error.status,
            ) from error


def push_level(ticket: Ticket, repo_id: str, *, private: bool | None, token: str | None) -> None:
    """Push the ticket of one level, with its tag.

    Raises:
        HubError: The Hub cannot be reached or refuses.
    """
    level = ticket.info["level"]
    message = f"Level {level}, sparsity {ticket.mask.sparsity:.4f}"
    ticket.push_to_hub(repo_id, tag=f"level-{level:02d}", private=private, token=token, commit_message=message)


def _level_ticket(ticket: Ticket, run: RunFolder, level: int) -> Ticket:
    """Make the ticket of a level from that of the last level."""
    series, start = ticket.series, ticket.start
    assert series is not None
    if level == len(series) - 1:
        return ticket
    if isinstance(start, Snapshot):  # a reference names the same weights for every level
        start = run.read_start(level)[1]
    info = {**ticket.info, "level": level, "history": ticket.info["history"][: level + 1]}
    until = series.until(level)
    return replace(ticket, mask=run.read_mask(level), start=start, info=info, series=until, model_file=False)
