"""Rewinding: the point of training that a level starts from, restored bit for bit.

======================  ==========================================  =======================================
rewind                  weights and buffers of a level              learning-rate schedule of a level
======================  ==========================================  =======================================
``init``                as they were before training                in full
``step(k)``             as they were after k optimizer steps        from step k to the end
``epoch(k)``            as they were after k epochs                 from there to the end
``pretrained``          as given, by ``from_pretrained``            in full
``learning_rate``       kept                                        in full, again
``none``                kept                                        a small constant rate (fine-tuning)
======================  ==========================================  =======================================

References:
    Frankle and Carbin, 2019, arXiv:1803.03635 (init). Frankle et al., 2020, "Linear Mode Connectivity and the Lottery
    Ticket Hypothesis", arXiv:1912.05671 (step). Chen et al., 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
    Networks", arXiv:2007.12223 (pretrained). Renda et al., 2020, "Comparing Rewinding and Fine-tuning in Neural Network
    Pruning", arXiv:2003.02389 (learning_rate). Han et al., 2015, arXiv:1506.02626 (none).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewindPoint:
    """The point of training that a level starts from. Make one with this module, as in ``rewind.step(500)``.

    Attributes:
        kind: "init", "step", "epoch", "pretrained", "learning_rate" or "none".
        at: The step or epoch, counted from the start of level 0.
    """

    kind: str
    at: int = 0

    @property
    def keeps_weights(self) -> bool:
        """Whether a level continues from the trained weights of the previous level."""
        return self.kind in ("learning_rate", "none")

    def in_steps(self, *, steps_per_epoch: int | None = None) -> int:
        """Return the point to rewind to in optimizer steps.

        Raises:
            ValueError: The point is given in epochs and ``steps_per_epoch`` is None.
        """
        if self.kind != "epoch":
            return self.at
        if steps_per_epoch is None:
            raise ValueError(f"{self} must be given in steps here; received epochs. Use step({self.at} * steps).")
        return self.at * steps_per_epoch

    def __str__(self) -> str:
        return f"{self.kind}:{self.at}" if self.kind in ("step", "epoch") else self.kind


init = RewindPoint("init")
pretrained = RewindPoint("pretrained")
learning_rate = RewindPoint("learning_rate")
none = RewindPoint("none")


def step(k: int) -> RewindPoint:
    """Rewind to the weights after ``k`` optimizer steps of level 0; ``step(0)`` equals ``init``."""
    return RewindPoint("step", _count(k, "step"))


def epoch(k: int) -> RewindPoint:
    """Rewind to the weights after ``k`` epochs of level 0."""
    return RewindPoint("epoch", _count(k, "epoch"))


def parse_rewind(text: str) -> RewindPoint:
    """Read a :class:`RewindPoint` from text such as ``init``, ``step:500``, ``epoch:2`` or ``learning_rate``.

    Raises:
        ValueError: The text names no rewind point.
    """
    kind, _, at = text.partition(":")
    if kind in ("step", "epoch") and at.isdecimal():
        return RewindPoint(kind, int(at))
    if text in ("init", "pretrained", "learning_rate", "none"):
        return RewindPoint(text)
    raise ValueError(
        f"rewind must be init, step:K, epoch:K, pretrained, learning_rate or none; received {text!r}. K is an integer."
    )


def _count(k: int, what: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"the {what} to rewind to must be a whole number, 0 or more; received {k!r}.")
    return k
