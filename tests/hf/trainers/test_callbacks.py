"""SparsityCallback: a mask that is held inside any Trainer."""

from types import SimpleNamespace

import pytest
from small_searches import mask_for, trainer
from small_task import KillAt, Killed, Points, arguments, net
from transformers import Trainer

from hf_lottery import SparseTrainer, SparsityCallback
from hf_lottery.training.weight_masks import BitMask


def test_a_finished_training_lets_go_also_after_an_interrupted_one(tmp_path):
    kill, model = KillAt(0, 2), net()
    sparse = SparsityCallback(mask_for(net()))
    ours = Trainer(model, arguments(tmp_path / "level-00"), train_dataset=Points(), callbacks=[kill, sparse])
    with pytest.raises(Killed):
        ours.train()
    ours.remove_callback(kill)
    ours.train()
    assert not model.inner.weight._post_accumulate_grad_hooks and not model.outer.weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("packed", [True, False])
def test_a_callback_can_keep_one_bit_a_weight(packed):
    mask, model = mask_for(net()), net()
    callback = SparsityCallback(mask, packed=packed)
    callback.on_train_begin(None, None, None, model=model)
    assert callback.handle is not None
    (_, held), *_ = callback.handle.bound.values()
    assert isinstance(held, BitMask) == packed
    model.inner.weight.square().sum().backward()
    assert bool((model.inner.weight.grad[~mask["inner.weight"]] == 0).all())
    callback.release()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP version 1", "MEGATRON_LM"])
def test_weights_out_of_their_shapes_are_refused(tmp_path, monkeypatch, kind):
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    ours = SparseTrainer(net(), arguments(tmp_path), train_dataset=Points())
    finder = trainer(tmp_path)
    if kind == "FSDP version 1":
        monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", SimpleNamespace(fsdp_version=1))
    else:
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(kind))
    for refused in (
        lambda: SparsityCallback(mask_for(net())).on_train_begin(ours.args, ours.state, ours.control, model=net()),
        lambda: setattr(ours, "mask", mask_for(net())),
        finder.train,
    ):
        with pytest.raises(NotImplementedError, match=f"in their own shapes; received {kind}"):
            refused()
    assert not list(tmp_path.iterdir())
