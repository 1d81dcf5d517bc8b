"""The sections of the recipes' ``report.html``, and the pictures in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ...alignment.match import Match
from ...connectivity.barrier import Barrier
from ...connectivity.overlap import overlap_by_parameter
from ...masks.mask import Mask
from ...report import (
    Section,
    Table,
    barrier_rows,
    empty_rows,
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
from ...report.tables import number_text
from ...signs.signed_mask import SignAgreement
from ...structured import UnitMask, dead_units
from ...symmetry.spec import PermutationSpec
from ..hub.about import changed_settings, command_line, surroundings
from ..hub.local_paths import without_local_paths
from ..hub.ticket_card import changed_facts, limits_of, measured, name_of, search_facts
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.run_settings import run_settings

_HEADS = {
    "num_attention_heads": r"\b(query|q_proj|q_lin)\.weight$",
    "num_key_value_heads": r"\b(key|value|[kv]_proj|[kv]_lin)\.weight$",
}
_UNITS = {"neuron": "neurons", "head": "dead_heads"}
_OF_THE_CLOCK = ("_runtime", "_per_second", "epoch")  # what a Trainer adds to the metrics

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


def run_info(command: Sequence[str], args: TrainingArguments, *read: Any) -> dict[str, Any]:
    """Return what the page of a command says of its run, in the terms of a ticket's info.

    Args:
        command: The command line.
        args: The settings of its Trainer.
        read: Dataclasses with its other options.
    """
    settings = run_settings(args, {key: value for one in read for key, value in asdict(one).items()})
    changed = changed_settings(settings, type(args), *map(type, read))
    about = {"command": command_line(command), "changed": changed, **surroundings(processes=args.world_size)}
    return {"settings": settings, "about": about}


def found_section(title: str, info: Mapping[str, Any]) -> Section:
    """Describe how something was found: data, command, seed, versions, date, hardware and the settings changed.

    Args:
        title: The heading.
        info: What is known of the run. Local paths are left out.
    """
    info = without_local_paths(info)
    told = ("seed", "task", "dataset_name")  # which the facts have already
    facts = search_facts(info) | {name: value for name, value in changed_facts(info).items() if name not in told}
    rows = [[name.replace("_", " "), str(value)] for name, value in facts.items()]
    return Section(title, "Settings that are not listed have their default values.", Table(["what", "value"], rows))


def search_sections(trainer: LotteryTrainer, path: NormPath, folder: Path) -> list[Section]:
    """Describe what a search found, and write the pictures.

    The page begins as the ticket's card does: what it is, how good it is, how it was found, and its limits.

    Args:
        trainer: The trainer of the finished search.
        path: The metrics on the way from the trained norm parameters to their initial values; empty without a search
            for signs.
        folder: Where the pictures are written.
    """
    info, history, mask = trainer.ticket.info, trainer.history, trainer.ticket.mask
    name = name_of(type(trainer.network).__name__, info)
    stay = f"{mask.kept:,} of {mask.weights:,} prunable weights stay, so it is {mask.sparsity:.2%} sparse"
    if isinstance(mask, UnitMask):
        stay = f"{mask.kept_units:,} of {mask.unit_count:,} units stay, and with them {mask.kept:,} weights"
    what = f"A lottery ticket of {name}: {stay}. It is in the folder ticket beside this page."
    flips = plot_sign_flips(folder / "sign_flips.png", history, title=f"{name}, one seed")
    flips_text = "The share of the kept weights whose sign changed in training."
    return [
        Section("What it is", what),
        _good_section(trainer, name, folder),
        found_section("How it was found", info),
        Section("Limits", limits_of(mask).replace("`", "")),
        Section("Levels", "Every level of the search: one training each.", level_rows(history)),
        *mask_sections(trainer.mask, trainer.network, name, folder, getattr(trainer.pruning, "spec", None)),
        Section("Sign flips", flips_text, picture=flips),
        *_norm_sections(path, measure_of(history[0]["metrics"]).removeprefix("eval_"), name, folder),
    ]


def _good_section(trainer: LotteryTrainer, name: str, folder: Path) -> Section:
    """What was measured of a ticket, and the levels of its search beside the noise of the dense network."""
    history = trainer.history
    measure = measure_of(history[0]["metrics"])
    table, text = measured(trainer.ticket.info)
    dense, count = history[0]["metrics"][measure], _samples(trainer.eval_dataset)
    is_accuracy, noise = measure == "eval_accuracy", None
    if is_accuracy and count:
        noise = 1.96 * (dense * (1 - dense) / count) ** 0.5
        text += (
            f"\n\nThe picture shows the levels of the search. Its band is what {count:,} test samples leave open of "
            "the dense accuracy (95 %)."
        )
    word = measure.removeprefix("eval_")
    picture = plot_against_density(
        folder / "accuracy.png", history, ylabel=word, title=name, percent=is_accuracy, noise=noise
    )
    return Section("How good it is", text.replace("`", ""), table if table.rows else None, picture)


def _samples(dataset: Any) -> int | None:
    """The number of samples of a data set; None of a stream or of several data sets."""
    return len(dataset) if isinstance(dataset, Sized) and not isinstance(dataset, Mapping) else None


def mask_sections(
    mask: Mask | None, model: Any, name: str, folder: Path, spec: PermutationSpec | None = None
) -> list[Section]:
    """Describe the sparsity of every layer, with empty neurons and heads; there is no section without a mask.

    Args:
        mask: The mask.
        model: The network.
        name: Title of the picture.
        folder: Where the picture is written.
        spec: The symmetries of the network, to say which units are dead.
    """
    if mask is None:
        return []
    empty = empty_rows(mask, heads=heads_of(model))
    picture = plot_layers(folder / "layers.png", mask, dead=empty, title=name)
    counts = {kind: sum(len(getattr(rows, lost)) for rows in empty.values()) for kind, lost in _UNITS.items()}
    lost = " and ".join(f"{count:,} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count)
    text = f"{mask.kept:,} of {mask.weights:,} weights stay. Without any weight left: {lost or 'no neuron'}."
    sections = [Section("Sparsity of every layer", text, picture=picture)]
    if spec is not None and spec.reads is not None:  # older versions saved none
        text = "Dead units send nothing, or receive nothing. Without them the network can be smaller."
        sections.append(Section("Dead units", text, dead_units(mask, spec)))
    return sections


def training_sections(
    info: Mapping[str, Any],
    metrics: Mapping[str, float],
    mask: Mask | None,
    model: nn.Module,
    agreement: SignAgreement | None,
    folder: Path,
) -> list[Section]:
    """Describe a training: what was trained, how good it is, how it was trained, and how far it kept its signs.

    Args:
        info: What is known of the run; see :func:`run_info`.
        metrics: Metrics on the test data.
        mask: The mask that the network was trained under, if any.
        model: The trained network.
        agreement: How far the network kept the signs that it was given, if it was given any.
        folder: Where the pictures are written.
    """
    name = name_of(type(model).__name__, info)
    sparse = f"under a mask that is {mask.sparsity:.2%} sparse" if mask is not None else "without a mask"
    shown = {k.removeprefix("eval_"): v for k, v in metrics.items() if not k.endswith(_OF_THE_CLOCK)}
    table = Table(["metric", "value"], [[k.replace("_", " "), number_text(v)] for k, v in shown.items()])
    one = f"One training with one seed ({info['settings']['seed']}). Nothing was trained beside it to compare it with."
    chosen = without_local_paths({key: info["settings"][key] for key in ("init", "mask", "signs")})
    what = f"{name}, trained {sparse}. Weights: {chosen['init']}; mask: {chosen['mask']}; signs: {chosen['signs']}."
    sections = [
        Section("What was trained", what),
        Section("How good it is", "Measured on the test data.", table),
        found_section("How it was trained", info),
        Section("Limits", one),
        *mask_sections(mask, model, name, folder),
    ]
    if agreement is not None:
        rows = [[layer, f"{value:.4f}"] for layer, value in agreement.layers.items()]
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
    percent, file = word == "accuracy", folder / "norm_path.png"
    picture = plot_norm_path(file, {"one seed": curve}, ylabel=word, title=name, percent=percent)
    text = (
        "The network that has the signs (before a final run), with its norm parameters moved towards their initial "
        "values. The flatter the curve, the less the signs depend on the trained norm parameters."
    )
    rows = [[f"{alpha:.2f}", number_text(value)] for alpha, value in curve.items()]
    return [Section("Norm path", text, Table(["norms towards init", word], rows), picture)]


def path_sections(
    barriers: Mapping[str, Barrier], word: str, name: str, info: Mapping[str, Any], folder: Path
) -> list[Section]:
    """Describe the errors on the straight line between two networks, and how they were measured.

    Args:
        barriers: Label -> barrier, such as before and after alignment.
        word: Name of the error.
        name: Name of the network and its data.
        info: What is known of the run; see :func:`run_info`.
        folder: Where the picture is written.
    """
    picture = plot_barriers(folder / "barrier.png", barriers, ylabel=word, title=name, percent=word == "error")
    what = f"The straight line between two trained networks, {name}: {', and '.join(barriers)}."
    text = f"The barrier is the largest {word} on the straight line between the networks minus the mean of its ends."
    limits = (
        "One pair of networks, so no interval. A low barrier says that both lie in one basin of this loss; it does not "
        "say that a mask of one suits the other."
    )
    return [
        Section("What it is", what),
        Section("Barrier", text, barrier_rows(barriers), picture),
        found_section("How it was measured", info),
        Section("Limits", limits),
    ]


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
    rows = [[label, number_text(overlap.iou), number_text(overlap.chance)] for label, overlap in overall.items()]
    text = "Intersection over union of the weights that the two masks keep. Chance is what shuffled masks would have."
    return [Section("Overlap of the masks", text, Table(["masks", "overlap", "chance"], rows), picture)]
