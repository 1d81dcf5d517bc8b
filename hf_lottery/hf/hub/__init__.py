"""The Hub: download, push, and everything that is stored there. ``hf_lottery.storage.hub_mixin`` imports it."""

from .checkpoint import mask_from_checkpoint
from .transfer import fetch, push

__all__ = ["fetch", "mask_from_checkpoint", "push"]
