"""The Hub: what is fetched from it and pushed to it; ``hf_lottery.storage.hub_mixin`` reaches it here."""

from .checkpoint import mask_from_checkpoint
from .transfer import fetch, push

__all__ = ["fetch", "mask_from_checkpoint", "push"]
