"""What the core reaches of the Hugging Face side, through ``hf_lottery.stored.load_hub``."""

from .checkpoint import mask_from_checkpoint
from .hub import fetch, push

__all__ = ["fetch", "mask_from_checkpoint", "push"]
