"""SparsityCallback: hold a model at a mask inside any ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from ...masks.mask import Mask
from ...structured import UnitMask
from ...training.snapshot import save_snapshot
from ...training.sparsity import SparseHandle, keep_sparse


class SparsityCallback(TrainerCallback):
    """A callback that keeps pruned weights at exactly zero during training, and verifies it at the end.

    It works in any Trainer: ``Trainer(..., callbacks=[SparsityCallback(mask)])``. The mask is bound when training
    begins, after the model was prepared and a checkpoint was loaded. An interrupted training leaves the model held:
    train again with this callback, or call :meth:`release`.

    Args:
        mask: A Mask, or the folder or repository on the Hub that holds one.
        packed: Whether to hold the mask as one bit per weight in memory; see :func:`hf_lottery.keep_sparse`.

    Raises:
        MaskMismatchError: When training begins, if the mask is for another model.
        SparsityLeakError: When training ends, if a pruned weight is not exactly zero or the mask prunes nothing.
        NotImplementedError: When training begins under DeepSpeed, Megatron or FSDP 1, which keep the weights elsewhere.
    """

    def __init__(self, mask: Mask | str | Path, *, packed: bool = False):
        self.mask = UnitMask.load_any(mask) if isinstance(mask, str | Path) else mask
        self.packed = packed
        self.handle: SparseHandle | None = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Bind the mask to the model and the optimizer."""
        refuse_flat_weights()
        self.release()  # an earlier training that was interrupted
        assert model is not None
        self.handle = keep_sparse(model, self.mask, optimizer, packed=self.packed)

    def on_train_end(self, args, state, control, **kwargs):
        """Verify the mask and release the model."""
        assert self.handle is not None
        try:
            self.handle.verify()
        finally:
            self.release()

    def release(self) -> None:
        """Release the model if it is bound."""
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


class SnapshotCallback(TrainerCallback):
    """A callback that saves weights and buffers after one training step, to rewind to.

    Args:
        step: Optimizer steps, counted from the start of the training; 1 or more.
        path: The file to write; :meth:`hf_lottery.Snapshot.load` reads it.
    """

    def __init__(self, step: int, path: str | Path):
        self.step, self.path = step, Path(path)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Save the model if this is the step."""
        if state.global_step == self.step:
            assert model is not None
            save_snapshot(model, self.path, step=self.step, write=args.should_save)


def refuse_flat_weights() -> None:
    """Raise NotImplementedError if the launch flattens parameters or keeps weights outside the model."""
    state = AcceleratorState()
    kind = state.distributed_type
    version = getattr(getattr(state, "fsdp_plugin", None), "fsdp_version", None)
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM) or version == 1:
        received = "FSDP version 1" if version == 1 else kind.value
        raise NotImplementedError(
            f"a mask must be held on parameters in their own shapes; received {received}, which changes these. "
            "Launch with data parallelism, or with FSDP version 2 (fsdp_version: 2)."
        )
