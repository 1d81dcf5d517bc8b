"""Run by test_processes.py on two processes: a whole search; each process writes what it ends with."""

import json
import sys
import time
from pathlib import Path

import torch.distributed
from small_task import Net, Points, arguments, net

from hf_lottery import LotteryTrainer, Snapshot, WinningSignTrainer


def main() -> None:
    """Run the search, the process ``slow`` a second late."""
    folder, score, slow = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kind, how = LotteryTrainer, {"score": score, "rewind": "step:2"}
    if score == "aws":
        kind, how = WinningSignTrainer, {"gradient_accumulation_steps": 2}
    own = None
    if score == "apart":
        how = {}
    args = arguments(folder / "run", per_device_train_batch_size=8, ddp_find_unused_parameters=False, **how)
    if score == "apart":
        rank = args.process_index

        def own(weight, _):
            return weight.abs() * (1 if rank else -1)

    ours = kind(model=net(), args=args, train_dataset=Points(), eval_dataset=Points(20), score=own)
    assert isinstance(ours.model, Net) and args.world_size == 2
    if args.process_index == slow:
        time.sleep(1)
    ours.train()
    found = {
        "mask": {name: entry.int().tolist() for name, entry in ours.mask.items()},
        "weights": Snapshot.capture(ours.model).sha256(),
        "levels": [record["level"] for record in ours.history],
    }
    torch.distributed.destroy_process_group()  # or the interpreter may die of its threads at exit
    (folder / f"rank-{args.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
