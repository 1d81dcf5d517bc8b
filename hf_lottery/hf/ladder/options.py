"""The options of a ladder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .paired import split_pair
from .rows import REFERENCES, ROWS

_ABOUT = "; ".join(f"{name}: {row.about}" for name, row in ROWS.items())


@dataclass
class LadderArguments:
    """The networks and rows of a ladder, how to match, and what to show.

    Raises:
        ValueError: A row is unknown, there are fewer than two seeds, a number is out of range, or two options
            contradict each other.
    """

    # In each pair, one flag on the command line overrides the other's value in a file.
    ALTERNATIVES: ClassVar[tuple[tuple[str, str], ...]] = (
        ("scan", "sparsities"), ("scan", "at"), ("sparsities", "at"),
    )  # fmt: skip

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "Seeds of the networks, two or more."}
    )
    targets: list[int] | None = field(
        default=None,
        metadata={
            "help": "Seeds of the targets; the source of each is the network before it. Default: all, in a ring. With "
            "every second one of an even number, no two pairs share a network. One target has no interval."
        },
    )
    rows: list[str] = field(
        default_factory=lambda: [name for name, row in ROWS.items() if row.by_default],
        metadata={"help": f"Rows of the ladder; those that others are compared to are added. {_ABOUT}."},
    )
    pairs: list[str] | None = field(
        default=None,
        metadata={"help": "Pairs of rows whose paired difference is shown too, such as aws_signs-aws_mask."},
    )
    match_batches: int = field(default=32, metadata={"help": "Number of training batches to match activations on."})
    start: str | None = field(
        default=None,
        metadata={
            "help": "The point of the dense training of a network that its rows start from: init, step:K or epoch:K. "
            "Default: the rewind point of the search for its mask."
        },
    )
    row_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the rows, on a fresh schedule over row_epochs. Default: a row goes on with the "
            "schedule of the dense training where it starts."
        },
    )
    row_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs of a row with a learning rate of its own. Default: those after its start."},
    )
    scan: list[float] | None = field(
        default=None,
        metadata={
            "help": "Sparsities to choose from, on pilot seeds: the one at which lth is furthest above naive, while it "
            "loses at most max_loss to the dense network."
        },
    )
    pilot_seeds: list[int] = field(
        default_factory=lambda: [100, 101], metadata={"help": "Seeds of the networks that choose; two or more."}
    )
    converged_within: float = field(
        default=0.01,
        metadata={
            "help": "On the pilot seeds, epochs are doubled, up to eight times as many, until that improves accuracy "
            "(a fraction) or loss by less than this."
        },
    )
    max_loss: float = field(
        default=0.03, metadata={"help": "What lth may lose to dense at a scanned sparsity, in accuracy or loss."}
    )
    title: str | None = field(
        default=None, metadata={"help": "Name of the ladder in tables and pictures. Default: network and data."}
    )
    sparsities: list[float] | None = field(
        default=None,
        metadata={
            "help": "Make a ladder at each of these sparsities, at the nearest levels of one search to the last."
        },
    )
    at: float | None = field(
        default=None, metadata={"help": "Take the masks of the level of this sparsity. Default: of the last level."}
    )
    rewinds: list[str] | None = field(default=None, metadata={"help": "Make a ladder for each of these rewind points."})
    widths: list[int] | None = field(
        default=None, metadata={"help": "Make a ladder for each of these values of width in the configuration."}
    )
    lengths: list[float] | None = field(
        default=None, metadata={"help": "Make a ladder for each of these values of row_epochs."}
    )
    workers: int | None = field(
        default=None, metadata={"help": "How many cells are computed side by side. Default: one a GPU, or one a core."}
    )
    plan: bool = field(default=False, metadata={"help": "Print what is left to do and what it costs, and stop."})

    def __post_init__(self) -> None:
        self._check_networks()
        self._check_numbers()
        self._check_choices()
        paired = [name for pair in self.pairs or [] for name in split_pair(pair)]
        if unknown := {*self.rows, *paired} - ROWS.keys():
            raise ValueError(f"rows must be among {', '.join(ROWS)}; received {min(unknown)!r}.")
        asked = {*self.rows, *paired}
        needed = {end for name in asked if (end := ROWS[name].end)}
        needed |= {*REFERENCES} if "lth" in asked | needed else set()
        self.rows = [name for name in ROWS if name in asked | needed]

    def _check_networks(self) -> None:
        for name in ("seeds", "pilot_seeds"):
            if len(set(seeds := getattr(self, name))) < max(2, len(seeds)):
                raise ValueError(
                    f"{name} must be two or more, each once; received {seeds}. Each network has another as source."
                )
        if len(set(self.targets or ())) < len(self.targets or ()):
            raise ValueError(f"targets must name each seed once; received {self.targets}.")
        if unknown := set(self.targets or ()) - set(self.seeds):
            raise ValueError(f"targets must be among the seeds, {self.seeds}; received {min(unknown)}.")
        if self.targets is not None:  # neighbours in the ring stay neighbours
            self.targets = [seed for seed in self.seeds if seed in self.targets]

    def _check_numbers(self) -> None:
        for name in ("match_batches", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}.")
        for name in ("row_learning_rate", "row_epochs", "lengths", "converged_within", "max_loss"):
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if any(number is not None and number <= 0 for number in values):
                raise ValueError(f"{name} must be above 0; received {value}.")
        for name in ("scan", "sparsities", "at"):
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if any(number is not None and not 0 < number < 1 for number in values):
                raise ValueError(f"{name} must be in (0, 1); received {value}. Pass fractions such as 0.9.")

    def _check_choices(self) -> None:
        for name in ("scan", "sparsities", "rewinds", "widths", "lengths"):
            values = getattr(self, name) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must name each value once; received {values}.")
        if (self.row_epochs or self.lengths) and self.row_learning_rate is None:
            raise ValueError("row_epochs must come with row_learning_rate; received it alone. Give both.")
        given = [name for name in ("scan", "sparsities", "at") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"one of scan, sparsities and at must be given at most; received {' and '.join(given)}.")
        if self.scan and (self.rewinds or self.widths or self.lengths):
            raise ValueError(
                "scan must choose the sparsity of one ladder; received it with rewinds, widths or lengths. Give "
                "sparsities in its place."
            )
