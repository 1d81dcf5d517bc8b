"""The Hub: download, push, and everything that is stored there. ``hf_lottery.storage.hub_mixin`` imports it."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .checkpoint import mask_from_checkpoint
    from .transfer import fetch, push
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checkpoint": ["mask_from_checkpoint"],
            "transfer": ["fetch", "push"],
        },
    )

__all__ = ["fetch", "mask_from_checkpoint", "push"]
