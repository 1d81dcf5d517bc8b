"""The tickets of a search: make that of the last level, and push those of all levels to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ...masks.mask import Mask
from ...masks.mask_series import MaskSeries
from ...networks.names import unwrap
from ...networks.shards import class_name
from ...storage.hub_mixin import HubError
from ...training.snapshot import Snapshot
from ..hub.reference import Reference
from ..hub.ticket import Ticket
from ..hub.transfer import base_model
from .run_folder import RunFolder


def last_ticket(
    run: RunFolder,
    model: nn.Module,
    start: Snapshot | Reference,
    *,
    settings: Mapping[str, Any],
    history: list[dict[str, Any]],
    token: str | None,
) -> Ticket:
    """Make the ticket of a search's last level.

    Args:
        run: The search's folder, which holds the masks of all levels.
        model: The search's model.
        start: The weights that the ticket starts from, or a reference to them.
        settings: The settings of the search.
        history: One record for each level.
        token: The token for the Hub, which is asked for the commit of the base model.
    """
    levels = len(history)
    config = getattr(model, "config", None)
    config = config if isinstance(config, PreTrainedConfig) else None
    architecture = class_name(unwrap(model))  # also of a model that is compiled
    info = {"level": levels - 1, "architecture": architecture, "settings": dict(settings), "history": history}
    if config is not None and (base := base_model(config, token=token)):
        info["base_model"] = base
    series = MaskSeries(Mask.from_pretrained(run.level(number)) for number in range(levels))
    return Ticket(series[-1], start, info, config, series)


def push_levels(ticket: Ticket, run: RunFolder, repo_id: str, *, private: bool | None, token: str | None) -> None:
    """Push each level's ticket in its own commit, with a tag such as ``level-03``; the last level comes last.

    Raises:
        HubError: The Hub cannot be reached or refuses. The levels before that one were pushed.
    """
    assert ticket.series is not None
    for level in range(len(ticket.series)):
        one = _level_ticket(ticket, run, level)
        message = f"Level {level}, sparsity {one.mask.sparsity:.4f}"
        try:
            one.push_to_hub(repo_id, tag=f"level-{level:02d}", private=private, token=token, commit_message=message)
        except HubError as error:
            before = f"The levels before {level} were pushed" if level else "No level was pushed"
            raise HubError(
                f"level {level}: {error} {before}; the search is whole in {run.root}: resume it to push again.",
                status=error.status,
            ) from error


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
    return replace(ticket, mask=until[-1], start=start, info=info, series=until)
