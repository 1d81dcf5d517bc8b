"""What the core reaches of the Hugging Face side, through ``hf_lottery.storage.hub_mixin.load_hub``."""

from .checkpoint import mask_from_checkpoint
from .transfer import fetch, push

__all__ = ["fetch", "mask_from_checkpoint", "push"]
