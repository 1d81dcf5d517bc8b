"""find_ticket: train, score, prune and rewind at each level (iterative magnitude pruning and its relatives)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.display import first_names
from ..networks.names import adapter_weights, named_parameters, plain_name
from ..pruning.evidence import Evidence
from ..pruning.mask_from_scores import prune
from ..pruning.schedules import Schedule, geometric
from ..pruning.scopes import Scope, global_ranking
from ..pruning.scores import Score, check_score, magnitude, needed_by, score_weights
from .levels import Level, Start, check_levels, run_levels
from .moment import capture_at
from .rewind import RewindPoint, init
from .snapshot import Snapshot
from .sparsity import keep_sparse


def find_ticket(
    model: nn.Module,
    train: Callable[[nn.Module, Start], Any],
    *,
    within: Mapping[str, Tensor],
    score: Score = magnitude,
    sparsity: float | None = None,
    levels: int | None = None,
    pruning_fraction: float = 0.2,
    schedule: Schedule = geometric,
    rewind: RewindPoint = init,
    scope: Scope = global_ranking,
    min_density: float = 0.0,
    evidence: Callable[[nn.Module], Mapping[str, Evidence]] | None = None,
) -> Iterator[Level]:
    """Find a lottery ticket: train the model, prune its least important weights, rewind the rest, and repeat.

    Args:
        model: The model, trained in place. When a level is yielded, it holds that level's trained weights.
        train: ``train(model, start)`` trains the model to the end with a fresh optimizer and returns metrics. Pruned
            weights are kept at zero for it.
        within: Name -> parameter that may be pruned, usually ``prunable(model)``.
        score: ``score(weight, evidence)``; weights with higher scores stay longer.
        sparsity: Target sparsity in (0, 1), reached exactly at the last level. Give either this or ``levels``.
        levels: Number of levels of pruning.
        pruning_fraction: Share of the remaining weights that each level removes.
        schedule: Function that makes the sparsity of each level from the three arguments above.
        rewind: The point that each level starts from. Give it in steps, because epochs are not known here.
        scope: Which weights compete with each other.
        min_density: Smallest fraction of every parameter to keep.
        evidence: ``evidence(model)`` gathers what the score needs from the trained model, as :func:`gather_evidence`
            does. It is called only if the score needs gradients or input norms; ``start`` is filled in here.

    Yields:
        One :class:`Level` for each sparsity of the schedule, the dense level 0 first.

    Raises:
        ValueError: A setting is out of range, a weight is frozen, the model has adapters to train, the score reads
            evidence that it does not declare or that is not gathered, or training ended before the step to rewind to.

    Reference:
        Frankle and Carbin, 2019, arXiv:1803.03635; Frankle et al., 2020, arXiv:1912.05671.
    """
    sparsities = schedule(sparsity=sparsity, levels=levels, pruning_fraction=pruning_fraction)
    weights = {plain_name(name): weight for name, weight in within.items()}
    _check_within(model, weights)
    check_levels(weights, sparsities, scope=scope, min_density=min_density)
    check_score(score, weights)
    gathered = needed_by(score) - {"start"}
    if gathered and evidence is None:
        raise ValueError(
            f"evidence must be given for a score that needs {' and '.join(sorted(gathered))}; received none. "
            "Pass a function of the model that calls gather_evidence()."
        )

    def next_mask(level: Level, target: float) -> Mask:
        _check_own(model, weights)  # training may have replaced them
        known = evidence(model) if evidence and gathered else {}
        whole = {
            name: known.get(name, Evidence())._replace(start=level.start.tensors[name].to(weight.device))
            for name, weight in weights.items()
        }
        scores = score_weights(weights, score, evidence=whole)
        return prune(scores, target, scope=scope, min_density=min_density, within=level.mask)

    if not isinstance(rewind, RewindPoint):
        raise ValueError(f"rewind must be a point such as rewind.step(500); received {rewind!r}. Use parse_rewind().")
    memory = _InMemory(model, train, Mask.dense(weights), rewind, rewind.in_steps())
    return run_levels(
        sparsities, begin=memory.begin, train=memory.train, next_mask=next_mask, hand_over=memory.hand_over
    )


class _InMemory:
    """A search that holds its masks and starts in memory and trains its levels with a function of the user."""

    def __init__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module, Start], Any],
        mask: Mask,
        rewind: RewindPoint,
        moment: int,
    ):
        self.model, self.train_model, self.mask = model, train, mask
        self.rewind, self.moment = rewind, moment
        self.rewound: Snapshot | None = None

    def begin(self, number: int) -> tuple[Mask, Snapshot]:
        if number and not self.rewind.keeps_weights:
            assert self.rewound is not None
            self.rewound.restore_(self.model)
            return self.mask, self.rewound
        return self.mask, Snapshot.capture(self.model)

    def train(self, number: int, mask: Mask, start: Snapshot) -> Any:
        if number:
            with keep_sparse(self.model, mask):
                return self.train_model(self.model, Start(number, start.step, fine_tune=self.rewind.kind == "none"))
        with capture_at(self.model, self.moment) as captured:
            metrics = self.train_model(self.model, Start(0))
        self.rewound = captured()
        return metrics

    def hand_over(self, number: int, mask: Mask) -> None:
        self.mask = mask


def check_trainable(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Check that a search can train what it prunes, and can rewind what it trains.

    Args:
        model: The model.
        weights: Name -> parameter that may be pruned.

    Raises:
        ValueError: One of the weights is frozen, or PEFT's adapters are trained.
    """
    adapters = [name for name, parameter in adapter_weights(model).items() if parameter.requires_grad]
    if adapters:
        raise ValueError(
            f"a search must rewind all that it trains; received adapters of PEFT, {first_names(adapters, limit=2)}, "
            "which are in no ticket. Search on the base model, and add the adapters to the ticket afterwards."
        )
    if frozen := [name for name, weight in weights.items() if not weight.requires_grad]:
        raise ValueError(
            f"a search must train every weight that it prunes; received {first_names(frozen)}, which are frozen. "
            "Unfreeze them with requires_grad_(), or exclude them from the weights to prune."
        )


def _check_within(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    Mask.dense(weights).check_fits(model)
    _check_own(model, weights)
    check_trainable(model, weights)


def _check_own(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = named_parameters(model)
    for name, weight in weights.items():
        if own.get(name) is not weight:
            raise ValueError(
                f"within must hold parameters of this model; received another {name!r}, or the second name of a tied "
                "parameter. Pass prunable(model), and let training change parameters in place: "
                "load_state_dict(assign=True) replaces them."
            )
