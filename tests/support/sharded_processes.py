"""Run by test_sharded.py: a whole search on one or more processes, sharded or not; each writes what it ends with."""

import gc
import json
import os
import resource
import sys
import weakref
from pathlib import Path

import torch
import torch.distributed
from emulated_fsdp import emulate
from small_task import arguments, vit
from transformers import TrainerCallback

from hf_lottery import LotteryTrainer, Snapshot, WinningSignTrainer
from hf_lottery.networks.names import named_weights
from hf_lottery.networks.shards import is_sharded, local, part_of


class Images(torch.utils.data.Dataset):
    """Images of noise whose label is the sign of their mean."""

    def __init__(self, count):
        self.pixels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": int(self.pixels[i].mean() > 0)}


class Watch(TrainerCallback):
    """After every step: the largest pruned weight on this process's shards, and how many weights it holds."""

    def __init__(self, trainer):
        self.trainer, self.leak, self.shares = trainer, 0.0, set()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Look at the shards."""
        mask = self.trainer.mask
        if mask is None or state.global_step % 2:
            return
        weights = named_weights(model)
        for name, entry in mask.items():
            weight = local(weights[name])
            pruned = weight[~part_of(entry, weights[name])]
            self.leak = max(self.leak, float(pruned.abs().max()) if pruned.numel() else 0.0)
            self.shares.add(round(weight.numel() / entry.numel(), 2))


class Stop(TrainerCallback):
    """End every process after a step of a level, as a scheduler of a cluster does."""

    def __init__(self, level, step):
        self.level, self.step = level, step

    def on_step_end(self, args, state, control, **kwargs):
        """End here."""
        if args.output_dir.endswith(f"level-{self.level:02d}") and state.global_step == self.step:
            torch.distributed.barrier()
            os._exit(3)


def make_search(folder: Path, settings: dict):
    """The search that the settings describe, and a function that makes the same one of another model."""
    kind, layout = settings.pop("kind", "LotteryTrainer"), settings.pop("layout", None)
    width, layers, changes = settings.pop("width", 32), settings.pop("layers", 2), {}
    if layout is not None:
        emulate()
        wrap = {"transformer_layer_cls_to_wrap": ["ViTLayer"], "state_dict_type": layout}
        changes = {"fsdp": True, "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": False, **wrap}}
    args = arguments(
        folder / "run", ddp_find_unused_parameters=False, include=None, learning_rate=0.003, **(changes | settings)
    )
    model = vit(1, hidden_size=width, intermediate_size=width * 3 // 2, num_hidden_layers=layers)
    kinds = {"LotteryTrainer": LotteryTrainer, "WinningSignTrainer": WinningSignTrainer}

    def search(model):
        return kinds[kind](model=model, args=args, train_dataset=Images(64), eval_dataset=Images(24))

    return search(model), search


def train(search) -> float:
    """Train, and return by how many bytes a weight the memory of this process grew at most."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    search.train(resume_from_checkpoint=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 1024 * peak / search.model.num_parameters()


def check_shards(search, given: list[weakref.ref]) -> None:
    """Check that this process holds its shards alone."""
    assert all(map(is_sharded, named_weights(search.model).values())), "the parameters are not sharded"
    gc.collect()
    assert not any(parameter() is not None for parameter in given), "whole parameters are still in memory"


def found_by(search) -> dict:
    """What a search ends with."""
    found = {
        "mask": search.mask.sha256(),
        "weights": Snapshot.capture(search.model).sha256(),
        "ticket": search.ticket.start.sha256(),
        "architecture": search.ticket.info["architecture"],
        "sparsities": [record["sparsity"] for record in search.history],
        "flips": [record["metrics"]["sign_flips"] for record in search.history],
        "losses": [record["metrics"]["eval_loss"] for record in search.history],
    }
    if isinstance(search, WinningSignTrainer):
        found["path"] = [metrics["eval_loss"] for _, metrics in search.norm_path(points=3)]
        found["after"] = [search.evaluate()["eval_loss"]]
    return found


def main() -> None:
    """Run the search that the settings describe."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    stop, sharded = settings.pop("stop", None), "layout" in settings
    search, again = make_search(folder, settings)
    watch, given = Watch(search), [weakref.ref(parameter) for parameter in search.model.parameters()]
    search.add_callback(watch)
    if stop:
        search.add_callback(Stop(*stop))
    bytes_a_weight = train(search)
    if sharded:
        check_shards(search, given)
    result = found_by(search)
    result |= {"leak": watch.leak, "shares": sorted(watch.shares), "bytes_a_weight": bytes_a_weight}
    if sharded:
        for what, allowed in (("other", []), ("again", ["weights"])):
            search.args.resume_with_other = allowed
            try:
                again(search.model).train(resume_from_checkpoint=True)
            except (NotImplementedError, ValueError) as error:
                result[what] = str(error)
    (folder / f"rank-{search.args.process_index}.json").write_text(json.dumps(result))
    if search.args.world_size > 1:
        torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that ends in the usual way


if __name__ == "__main__":
    main()
