"""What the pages of the recipes show: sections of ``report.html`` and the pictures in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...connectivity.barrier import Barrier
from ...masks.mask import Mask
from ...report import (
    Picture,
    Section,
    Table,
    dead_units,
    level_rows,
    plot_against_density,
    plot_barriers,
    plot_layers,
    plot_match,
    plot_norm_path,
    plot_overlap,
    plot_sign_flips,
)
from ...report.style import PICTURE_BYTES
from ...signs.signed_mask import SignAgreement
from ...symmetry.permutation import Permutation
from ..trainers.lottery_trainer import LotteryTrainer

_HEADS = {
    "num_attention_heads": r"\b(query|q_proj|q_lin)\.weight$",
    "num_key_value_heads": r"\b(key|value|[kv]_proj|[kv]_lin)\.weight$",
}

NormPath = Sequence[tuple[float, Mapping[str, float]]]


def measure_of(metrics: Mapping[str, float]) -> str:
    """The metric that a page is about."""
    return "eval_accuracy" if "eval_accuracy" in metrics else "eval_loss"


def search_report_bytes(norm_path: bool) -> int:
    """Bytes of the page and pictures of :func:`search_sections`, roughly: each picture as a file and, as text, inside.

    Args:
        norm_path: Whether there will be one.
    """
    pictures = 4 if norm_path else 3
    return pictures * (PICTURE_BYTES + PICTURE_BYTES * 4 // 3)


def search_sections(trainer: LotteryTrainer, path: NormPath, folder: Path) -> list[Section]:
    """What a search found; the pictures are written to ``folder``."""
    history, name = trainer.history, type(trainer.model).__name__
    measure = measure_of(history[0]["metrics"])
    word = measure.removeprefix("eval_")
    points = {record["sparsity"]: [record["metrics"][measure]] for record in history}
    plot_against_density(folder / "accuracy.png", {"ticket": points}, ylabel=word, title=name)
    flips = {record["level"]: record["metrics"]["sign_flips"] for record in history}
    plot_sign_flips(folder / "sign_flips.png", {"ticket": flips}, title=name)
    sections = [
        Section("Levels", f"{name}, pruned to {history[-1]['sparsity']:.2%}.", level_rows(history)),
        Section(
            f"{word.capitalize()} against sparsity",
            picture=Picture(folder / "accuracy.png", f"{word} of every level against the weights that stay"),
        ),
        *mask_sections(trainer.mask, trainer.model, folder),
        Section(
            "Sign flips",
            "The fraction of the kept weights that trained into another sign.",
            picture=Picture(folder / "sign_flips.png", "sign flips of every level"),
        ),
    ]
    return sections + _norm_sections(path, measure, name, folder)


def mask_sections(mask: Mask | None, model: Any, folder: Path) -> list[Section]:
    """Sparsity of every layer, dead neurons and heads; nothing without a mask."""
    if mask is None:
        return []
    dead = dead_units(mask, heads_of(model))
    plot_layers(folder / "layers.png", mask.layer_sparsities(), dead=dead, title=type(model).__name__)
    neurons, heads = (sum(len(getattr(d, lost)) for d in dead.values()) for lost in ("neurons", "dead_heads"))
    text = f"{mask.kept:,} of {mask.weights:,} weights stay. {neurons:,} neurons and {heads:,} heads have none left."
    picture = Picture(folder / "layers.png", "sparsity of every layer, with dead neurons and heads marked")
    return [Section("Sparsity of every layer", text, picture=picture)]


def training_sections(
    about: Mapping[str, object],
    metrics: Mapping[str, float],
    mask: Mask | None,
    model: nn.Module,
    agreement: SignAgreement | None,
    folder: Path,
) -> list[Section]:
    """What was trained, how well, and how far it kept its signs."""
    sections = [
        Section(
            "What was trained",
            table=Table(["setting", "value"], [[k, str(v)] for k, v in about.items() if v is not None]),
        ),
        Section("Metrics", table=Table(["metric", "value"], [[k, f"{v:.4f}"] for k, v in metrics.items()])),
        *mask_sections(mask, model, folder),
    ]
    if agreement is not None:
        rows = [[name, f"{value:.4f}"] for name, value in agreement.layers.items()]
        text = f"{agreement.overall:.2%} of the kept weights have the sign that they were given; chance is one half."
        sections.append(Section("Sign agreement", text, Table(["parameter", "agreement"], rows)))
    return sections


def heads_of(model: Any) -> dict[str, int]:
    """Pattern of the parameters of queries, keys and values -> how many heads they have."""
    config = getattr(model, "config", None)
    queries = getattr(config, "num_attention_heads", None)
    if not isinstance(queries, int):
        return {}
    counts = {"num_attention_heads": queries, "num_key_value_heads": getattr(config, "num_key_value_heads", None)}
    return {pattern: counts[name] or queries for name, pattern in _HEADS.items()}


def _norm_sections(path: NormPath, measure: str, name: str, folder: Path) -> list[Section]:
    if not path:
        return []
    curve = {alpha: metrics[measure] for alpha, metrics in path}
    plot_norm_path(folder / "norm_path.png", {"ticket": curve}, ylabel=measure.removeprefix("eval_"), title=name)
    text = (
        "The network that the signs are of (before a final run), with its norm parameters moved towards their initial "
        "values. A signed mask wants this flat."
    )
    rows = [[f"{alpha:.2f}", f"{value:.4f}"] for alpha, value in curve.items()]
    table = Table(["norms towards init", measure.removeprefix("eval_")], rows)
    return [Section("Norm path", text, table, Picture(folder / "norm_path.png", "the same numbers as a curve"))]


def path_sections(barriers: Mapping[str, Barrier], word: str, name: str, folder: Path) -> list[Section]:
    """The errors on the straight line between two networks."""
    curves = {label: dict(zip(found.alphas, found.errors, strict=True)) for label, found in barriers.items()}
    plot_barriers(folder / "barrier.png", curves, ylabel=word, title=name)
    rows = [
        [label, *(f"{e:.4f}" for e in (found.errors[0], found.errors[-1], max(found.errors), found.barrier))]
        for label, found in barriers.items()
    ]
    text = f"The barrier is the largest {word} on the straight line between the networks minus the mean of its ends."
    table = Table(["networks", "first", "second", "largest", "barrier"], rows)
    picture = Picture(folder / "barrier.png", f"{word} on the straight line between the networks")
    return [Section("Barrier", text, table, picture)]


def match_sections(permutation: Permutation, score: str, name: str, folder: Path) -> list[Section]:
    """How well the units of two networks were matched."""
    scores = {group: (match.identity, match.matched) for group, match in permutation.report.groups.items()}
    if not scores:
        return []
    plot_match(folder / "match.png", scores, score=score, title=name)
    text = "How well the units of the two networks go together, in the order they had and as matched."
    return [Section("Match", text, picture=Picture(folder / "match.png", f"{score}, group by group"))]


def overlap_sections(a: Mask, b: Mask, permutation: Permutation | None, name: str, folder: Path) -> list[Section]:
    """How far two masks keep the same weights, layer by layer, before and after alignment, and by chance."""
    pairs = {"as they were": a} if permutation is None else {"as they were": a, "aligned": permutation(a)}
    values: dict[str, dict[str, float]] = {}
    for layer in a:
        found = {k: Mask({layer: mask[layer]}).overlap(Mask({layer: b[layer]})) for k, mask in pairs.items()}
        values[layer] = {k: overlap.iou for k, overlap in found.items()} | {"chance": found["as they were"].chance}
    plot_overlap(folder / "overlap.png", values, measure="intersection over union", title=name)
    total = {k: mask.overlap(b) for k, mask in pairs.items()}
    rows = [[k, f"{overlap.iou:.4f}", f"{overlap.chance:.4f}"] for k, overlap in total.items()]
    text = "Intersection over union of the weights that the two masks keep."
    picture = Picture(folder / "overlap.png", "the overlap of every layer")
    return [Section("Overlap of the masks", text, Table(["masks", "overlap", "chance"], rows), picture)]
