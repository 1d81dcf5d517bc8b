"""FSDP2 on processors: accelerate shards on accelerators only, and torch does it anywhere."""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_made = AcceleratorState.__init__


def _make(self, *args, fsdp_plugin=None, **kwargs):
    fresh = "_mixed_precision" not in AcceleratorState._shared_state
    _made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fresh and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


def emulate() -> None:
    """Let accelerate take processes on processors for ones with accelerators, as far as FSDP2 is concerned."""
    AcceleratorState.__init__ = _make
