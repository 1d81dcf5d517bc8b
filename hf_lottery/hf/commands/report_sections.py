"""The sections of the recipes' ``report.html``, and the pictures in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...alignment.match import Match
from ...connectivity.barrier import Barrier
from ...connectivity.overlap import overlap_by_parameter
from ...masks.mask import Mask
from ...report import (
    Section,
    Table,
    barrier_rows,
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
from ..trainers.lottery_trainer import LotteryTrainer

_HEADS = {
    "num_attention_heads": r"\b(query|q_proj|q_lin)\.weight$",
    "num_key_value_heads": r"\b(key|value|[kv]_proj|[kv]_lin)\.weight$",
}

NormPath = Sequence[tuple[float, Mapping[str, float]]]


def measure_of(metrics: Mapping[str, float]) -> str:
    """Return the name of the metric that a page is about: the accuracy where there is one, else the loss."""
    return "eval_accuracy" if "eval_accuracy" in metrics else "eval_loss"


def search_report_bytes(norm_path: bool) -> int:
    """Estimate the bytes of the page and pictures of :func:`search_sections`.

    Each picture is counted twice: as a file, and as text in the page.

    Args:
        norm_path: Whether the page will have a norm path, as that of a search for signs does.
    """
    pictures = 4 if norm_path else 3
    return pictures * (PICTURE_BYTES + PICTURE_BYTES * 4 // 3)


def search_sections(trainer: LotteryTrainer, path: NormPath, folder: Path) -> list[Section]:
    """Describe what a search found, and write the pictures.

    Args:
        trainer: The trainer of the finished search.
        path: The metrics on the way from the trained norm parameters to their initial values; empty without a search
            for signs.
        folder: Where the pictures are written.
    """
    history, name = trainer.history, type(trainer.model).__name__
    word = measure_of(history[0]["metrics"]).removeprefix("eval_")
    curve = plot_against_density(folder / "accuracy.png", history, ylabel=word, title=name)
    flips = plot_sign_flips(folder / "sign_flips.png", history, title=name)
    flips_text = "The fraction of the kept weights whose sign changed in training."
    return [
        Section("Levels", f"{name}, pruned to {history[-1]['sparsity']:.2%}.", level_rows(history)),
        Section(f"{word.capitalize()} against sparsity", picture=curve),
        *mask_sections(trainer.mask, trainer.model, folder),
        Section("Sign flips", flips_text, picture=flips),
        *_norm_sections(path, word, name, folder),
    ]


def mask_sections(mask: Mask | None, model: Any, folder: Path) -> list[Section]:
    """Describe the sparsity of every layer, with dead neurons and heads; there is no section without a mask."""
    if mask is None:
        return []
    dead = dead_units(mask, heads=heads_of(model))
    picture = plot_layers(folder / "layers.png", mask, dead=dead, title=type(model).__name__)
    neurons, heads = (sum(len(getattr(d, lost)) for d in dead.values()) for lost in ("neurons", "dead_heads"))
    text = f"{mask.kept:,} of {mask.weights:,} weights stay. {neurons:,} neurons and {heads:,} heads have none left."
    return [Section("Sparsity of every layer", text, picture=picture)]


def training_sections(
    about: Mapping[str, object],
    metrics: Mapping[str, float],
    mask: Mask | None,
    model: nn.Module,
    agreement: SignAgreement | None,
    folder: Path,
) -> list[Section]:
    """Describe a training: its settings, its metrics, and how far it kept its signs.

    Args:
        about: Settings of the training; those that are None are left out.
        metrics: Metrics on the test data.
        mask: The mask that the network was trained under, if any.
        model: The trained network.
        agreement: How far the network kept the signs that it was given, if it was given any.
        folder: Where the pictures are written.
    """
    settings = Table(["setting", "value"], [[k, str(v)] for k, v in about.items() if v is not None])
    sections = [
        Section("What was trained", table=settings),
        Section("Metrics", table=Table(["metric", "value"], [[k, f"{v:.4f}"] for k, v in metrics.items()])),
        *mask_sections(mask, model, folder),
    ]
    if agreement is not None:
        rows = [[name, f"{value:.4f}"] for name, value in agreement.layers.items()]
        text = f"{agreement.overall:.2%} of the kept weights have the sign that they were given; chance is one half."
        sections.append(Section("Sign agreement", text, Table(["parameter", "agreement"], rows)))
    return sections


def heads_of(model: Any) -> dict[str, int]:
    """Count the heads of a network: pattern of the parameters of queries, keys and values -> number of heads."""
    config = getattr(model, "config", None)
    queries = getattr(config, "num_attention_heads", None)
    if not isinstance(queries, int):
        return {}
    counts = {"num_attention_heads": queries, "num_key_value_heads": getattr(config, "num_key_value_heads", None)}
    return {pattern: counts[name] or queries for name, pattern in _HEADS.items()}


def _norm_sections(path: NormPath, word: str, name: str, folder: Path) -> list[Section]:
    if not path:
        return []
    curve = {alpha: metrics[f"eval_{word}"] for alpha, metrics in path}
    picture = plot_norm_path(folder / "norm_path.png", {"ticket": curve}, ylabel=word, title=name)
    text = (
        "The network that has the signs (before a final run), with its norm parameters moved towards their initial "
        "values. The flatter the curve, the less the signs depend on the trained norm parameters."
    )
    rows = [[f"{alpha:.2f}", f"{value:.4f}"] for alpha, value in curve.items()]
    return [Section("Norm path", text, Table(["norms towards init", word], rows), picture)]


def path_sections(barriers: Mapping[str, Barrier], word: str, name: str, folder: Path) -> list[Section]:
    """Describe the errors on the straight line between two networks.

    Args:
        barriers: Label -> barrier, such as before and after alignment.
        word: Name of the error.
        name: Title of the picture.
        folder: Where the picture is written.
    """
    picture = plot_barriers(folder / "barrier.png", barriers, ylabel=word, title=name)
    text = f"The barrier is the largest {word} on the straight line between the networks minus the mean of its ends."
    return [Section("Barrier", text, barrier_rows(barriers), picture)]


def match_sections(found: Match, score: str, name: str, folder: Path) -> list[Section]:
    """Describe how well the units of two networks were matched.

    Args:
        found: What the matching returned.
        score: Name of the score of the match.
        name: Title of the picture.
        folder: Where the picture is written.
    """
    if not found.report.groups:
        return []
    picture = plot_match(folder / "match.png", found, score=score, title=name)
    text = "How similar the units of the two networks are, in the order they had and as matched."
    return [Section("Match", text, picture=picture)]


def overlap_sections(a: Mask, b: Mask, found: Match | None, name: str, folder: Path) -> list[Section]:
    """Describe how far two masks keep the same weights, layer by layer, before and after alignment, and by chance.

    Args:
        a: The mask of the network that was permuted.
        b: The mask of the other network.
        found: What carries the first network to the other; None if they were not aligned.
        name: Title of the picture.
        folder: Where the picture is written.
    """
    pairs = {"as they were": a} if found is None else {"as they were": a, "aligned": found.permutation(a)}
    layers = {label: overlap_by_parameter(mask, b) for label, mask in pairs.items()}
    values = {
        layer: {label: overlaps[layer].iou for label, overlaps in layers.items()} | {"chance": overlap.chance}
        for layer, overlap in layers["as they were"].items()
    }
    picture = plot_overlap(folder / "overlap.png", values, measure="intersection over union", title=name)
    overall = {label: mask.overlap(b) for label, mask in pairs.items()}
    rows = [[label, f"{overlap.iou:.4f}", f"{overlap.chance:.4f}"] for label, overlap in overall.items()]
    text = "Intersection over union of the weights that the two masks keep."
    return [Section("Overlap of the masks", text, Table(["masks", "overlap", "chance"], rows), picture)]
