"""WinningSignTrainer: a Trainer whose train() finds a signed mask for any initialization (A Winning Sign, AWS)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from ...connectivity.repair import batch_norms, recalibrate_batch_norm_
from ...masks.mask import Mask
from ...networks.generators import kept_generators
from ...networks.names import named_weights
from ...networks.shards import is_sharded, local, reshard
from ...signs.norms import interpolated_norms, norm_parameters, norm_path
from ...signs.signed_mask import SignedMask
from ...training.snapshot import Snapshot, save_snapshot
from .lottery_trainer import LotteryTrainer
from .run_folder import REWIND_NAME
from .run_settings import level_seed

logger = logging.getLogger(__name__)


class WinningSignTrainer(LotteryTrainer):
    """A LotteryTrainer whose levels keep their weights and train with interpolated norm parameters.

    At each optimizer step one ``alpha`` is drawn from U(0, 1), and forward and backward run with every norm parameter
    at ``(1 - alpha) * psi + alpha * psi_init``. Evaluation, saved models and the final run use ``alpha = 0``.
    ``alpha`` depends on seed, level, step and (with ``norm_interpolation="micro_batch"``) micro-batch, so all
    processes and a resumed run draw the same. Without norms this is learning-rate rewinding, and a warning says so.

    After :meth:`train` the model holds the network whose signs were taken: that of the last level, or the one that the
    final run started from. ``output_dir/ticket`` starts there, and ``output_dir/signed`` holds only the signed mask.

    Args:
        initial_norms: Name -> ``psi_init``. Default: the norms of the given model: initial values if it is new, those
            of the checkpoint if it is pretrained. The other arguments are the LotteryTrainer's.

    Attributes:
        norms: The norm parameters by name.
        signed: The signed mask, after :meth:`train`.

    Raises:
        ValueError: ``rewind`` is not learning_rate, or a pattern for norms matches nothing.

    Reference:
        Oh, Baik and Lee, 2025, arXiv:2504.05357. They draw alpha for each batch, which is each step without gradient
        accumulation, and measure batch-norm networks without recalibration. The Trainer's ``weight_decay`` excludes
        biases and layer norms but includes the gains of batch, group and RMS norms; theirs includes all.
    """

    _default_rewind = "learning_rate"
    _knows_norms = True

    def __init__(self, *args, initial_norms: Mapping[str, Tensor] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.rewind_point.kind != "learning_rate":
            raise ValueError(
                f"signs must be found with rewind=learning_rate, which keeps them; received {self.rewind_point}. "
                "Use LotteryTrainer for another rewind point."
            )
        if self.lottery.rewind_by_reference:
            raise ValueError(
                "rewind_by_reference must be off here; received True. A signed ticket starts from trained weights."
            )
        self.interpolation = self.lottery.norm_interpolation or "step"
        self.norms = norm_parameters(self.network, include=self.lottery.norm_include, exclude=self.lottery.norm_exclude)
        if not self.norms and self.interpolation != "none":
            logger.warning(
                "%s has no norm parameters: AWS is learning-rate rewinding here.", type(self.network).__name__
            )
        if both := self.norms.keys() & self.weights.keys():
            raise ValueError(
                f"a norm must not be prunable; received {min(both)!r}, which is both. Use exclude or norm_exclude."
            )
        self._given_norms = self._check_given(initial_norms)
        self._initial: dict[str, Tensor] = {}
        self._drawn_at, self._micro_batch = -1, 0
        self._refuse_apart()

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> Tensor:
        """Run the Trainer's step with interpolated norms."""
        if not self._interpolates:
            return super().training_step(model, inputs, num_items_in_batch)
        if callable(prepare := getattr(self.optimizer, "train", None)):
            prepare()  # a schedule-free optimizer writes weights here; the Trainer would call it inside
        if any(map(is_sharded, self.norms.values())):
            reshard(self.network)  # an evaluation leaves the outermost parameters gathered
        with interpolated_norms(self.norms, self._initial, self._draw()):
            return super().training_step(model, inputs, num_items_in_batch)

    def norm_path(self, *, points: int = 5) -> list[tuple[float, dict[str, float]]]:
        """Measure the network whose signs were taken along the line from its norms to their initial values.

        AWS keeps the metrics flat along this line. With a final run, the network is the one that it started from. Batch
        norms are recalibrated at each point; the model and its statistics are unchanged afterwards.

        Args:
            points: How many values of ``alpha`` to measure, evenly spaced from 0 to 1.

        Returns:
            ``(alpha, metrics)`` for each point.

        Raises:
            ValueError: The Trainer has not trained.
        """
        if self.norms and not self._initial:
            raise ValueError("a norm path must start from trained norms; received a Trainer that has not trained.")
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}

        def evaluate(_: nn.Module) -> dict[str, float]:
            self._recalibrate()
            return self.evaluate()

        try:
            with kept_generators():
                return norm_path(self.network, self._initial, evaluate, points=points)
        finally:
            for name, buffer in self.network.named_buffers():
                buffer.copy_(before[name])

    @property
    def _interpolates(self) -> bool:
        on = bool(self.norms) and self.interpolation != "none"
        return on and not self.is_final_run(self._level)

    def _draw(self) -> float | Tensor:
        step = self.state.global_step
        by_micro_batch = self.interpolation == "micro_batch"
        self._micro_batch = self._micro_batch + 1 if by_micro_batch and step == self._drawn_at else 0
        self._drawn_at = step
        return np.random.default_rng([self.args.seed, self._level, 2, step, self._micro_batch]).random()

    def _begin_level(self, number: int) -> tuple[Mask, Snapshot]:
        self._find_initial()
        self._drawn_at = -1
        return super()._begin_level(number)

    def _find_initial(self) -> None:
        # Read from disk, because a resumed run may have been given another model.
        values = self._given_norms or self._search.run.read_start(0)[1].tensors
        self._initial = {name: values[name].to(local(norm), copy=True) for name, norm in self.norms.items()}

    def _take_shards(self) -> None:
        super()._take_shards()
        named = named_weights(self.network)
        for name in self.norms:
            self.norms[name] = cast(nn.Parameter, named[name])
        self._refuse_apart()

    def _refuse_apart(self) -> None:
        """Raise for micro-batches under FSDP2, which adds up their gradients before they can be scaled."""
        if self.interpolation == "micro_batch" and any(map(is_sharded, self.norms.values())):
            raise NotImplementedError(
                "norm_interpolation must be step with sharded parameters; received micro_batch. Pass step."
            )

    def _check_given(self, given: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        if given is None:
            return None
        for name, parameter in self.norms.items():
            shape = list(given[name].shape) if name in given else "none"
            if shape != list(parameter.shape):
                raise ValueError(
                    f"initial_norms must have {name!r} of shape {list(parameter.shape)}; received {shape}."
                )
        return {name: given[name].detach().cpu().clone() for name in self.norms}

    def get_settings(self) -> dict[str, Any]:
        given = Snapshot(0, self._given_norms).sha256() if self._given_norms else None
        own = {"initial_norms": given, "norm_interpolation": self.interpolation}  # which LotteryTrainer leaves out
        return {**super().get_settings(), **own}

    def _measure(self, mask: Mask, start: Snapshot, ignore_keys) -> dict[str, float]:
        if self._interpolates:
            self._recalibrate()
        return super()._measure(mask, start, ignore_keys)

    def _recalibrate(self) -> None:
        """Recompute batch-norm statistics for the present network; the running ones mix many interpolated networks."""
        if not batch_norms(self.network):
            return
        set_seed(level_seed(self.args.seed, 0, 3))  # the same batches for every level and point
        share = math.ceil(self.lottery.recalibration_batches / self.args.world_size)
        batches = islice(self.get_train_dataloader(), share)
        recalibrate_batch_norm_(self.network, map(self._prepare_inputs, batches), forward=self.loss)

    def _ticket_start(self, start: Snapshot) -> Snapshot:
        if self.lottery.final_run:
            return start
        file = self._search.run.handed_over
        save_snapshot(self.network, file, write=self.args.should_save)
        self.accelerator.wait_for_everyone()
        return Snapshot.load(file)

    def _push_signed(self) -> None:
        where = {"private": self.args.hub_private_repo, "token": self.args.hub_token}
        self.signed.push_to_hub(cast(str, self.hub_model_id), subfolder="signed", **where)

    def _conclude(self) -> TrainOutput:
        self._find_initial()
        output, search, run = super()._conclude(), self._search, self._search.run
        if not self.lottery.final_run:  # read the ticket's own file, as the other is deleted
            self.ticket = replace(self.ticket, start=Snapshot.load(run.ticket / REWIND_NAME))
            search.write(lambda: run.handed_over.unlink())
        self.ticket.start.restore_(self.network)
        self.ticket.mask.apply_(self.network)
        self.signed = SignedMask.from_model(self.network, self.ticket.mask, norms=self.norms)
        search.write(lambda: self.signed.save_pretrained(run.signed))
        if self.args.push_to_hub:
            search.write(lambda: self._push_signed())
        return output
