"""Ticket: a mask, the weights it starts from, and where both come from, in a folder or repository anyone can load."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ...masks.config import CONFIG_NAME, read_config
from ...masks.file import MASK_NAME, read_mask, stage_mask
from ...masks.mask import Mask, MaskMismatchError
from ...masks.mask_series import MaskSeries
from ...networks.configuration import configuration_differences, configuration_of, deciding
from ...networks.display import first_names, html_table
from ...networks.names import base_of, named_state
from ...networks.shards import class_name
from ...report import plot_against_density
from ...storage.atomic import staged_folder
from ...storage.encoding import MaskFileError
from ...storage.hub_mixin import HubMixin, find_folder
from ...structured import UnitMask
from ...training.snapshot import Snapshot
from ..trainers.run_folder import REWIND_NAME
from .card import merged_card
from .difference import DIFFERENCE_NAME, Difference
from .local_paths import clean_config_, without_local_paths
from .model_file import MODEL_CONFIG_NAME, stage_model, stale_model
from .processing import processing_files, read_processing, stage_processing, stated_processing, without_places
from .reference import Reference
from .ticket_card import name_of, ticket_card
from .ticket_files import (
    read_generation_config,
    read_start,
    read_ticket_model_config,
    stage_generation_config,
    stage_model_config,
    stage_start,
    stated_generation,
)
from .ticket_info import base_id, check_info
from .ticket_model import (
    build_start,
    defined_in,
    known_class,
    loads_alike,
    restore_fitting_,
    structural_differences,
)
from .transfer import base_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...storage.hub_mixin import Where

_PICTURE_NAME = "accuracy.png"


@dataclass(frozen=True)
class Ticket(HubMixin):
    """A lottery ticket.

    Attributes:
        mask: Which weights stay.
        start: The weights and buffers that training starts from; a :class:`Reference` to them; or for a fine-tuning,
            its :class:`~hf_lottery.hf.hub.difference.Difference` to the base model.
        info: Where the ticket comes from, in JSON terms: ``level``, ``settings``, ``history`` of (level, sparsity,
            metrics), ``architecture``, ``defined_in`` (the package of that class), ``base_model``, ``comparison``,
            ``about``, ``parents``, ``permutation``, or your own keys. It is kept in ``mask_config.json``.
        model_config: Configuration to build the model from; None if it is not a transformers model.
        series: The masks of all levels up to this one, if they are known. They are saved in the same file.
        processing: The files of its tokenizer or image processor: name -> bytes. ``AutoTokenizer`` and
            ``AutoImageProcessor`` load them from the ticket's folder or repository.
        generation_config: How the model generates texts; None if it does not, or if this is not known.
        model_file: Whether stored weights are saved a second time, as the masked model that ``AutoModel`` loads.

    Raises:
        TypeError: The mask or the start is something else.
        ValueError: The mask is not the last of the series, or one of these keys of ``info`` has another type.
    """

    FILES: ClassVar[tuple[str, ...]] = (CONFIG_NAME, MASK_NAME)
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = (REWIND_NAME, DIFFERENCE_NAME, MODEL_CONFIG_NAME)
    MODEL_BESIDE: ClassVar[bool] = True

    mask: Mask
    start: Snapshot | Reference | Difference
    info: dict[str, Any] = field(default_factory=dict)
    model_config: PreTrainedConfig | None = None
    series: MaskSeries | None = None
    processing: Mapping[str, bytes] = field(default_factory=dict)
    model_file: bool = True
    generation_config: GenerationConfig | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        mask: Mask,
        start: Snapshot | Reference | Difference,
        *,
        info: Mapping[str, Any] | None = None,
        series: MaskSeries | None = None,
        processing: Any = None,
        token: str | bool | None = None,
    ) -> Ticket:
        """Make the ticket of a model, with all that :meth:`build_model` needs to know of it.

        Args:
            model: The model, trained or not; its weights do not count.
            mask: Which weights stay.
            start: The weights that the ticket starts from, or a reference to them.
            info: Further keys of the info.
            series: The masks of all levels.
            processing: The tokenizer or image processor, as a Trainer takes it as ``processing_class``.
            token: The token for the Hub, which is asked for the commit of the base model.
        """
        config, generation = (getattr(base_of(model), name, None) for name in ("config", "generation_config"))
        config = config if isinstance(config, PreTrainedConfig) else None
        generation = copy.deepcopy(generation) if isinstance(generation, GenerationConfig) else None
        own: dict[str, Any] = {"architecture": class_name(base_of(model)), "defined_in": defined_in(model)}
        if config is not None and (base := base_model(config, token=token)):
            own["base_model"] = base
        files, info = processing_files(processing), {**own, **(info or {})}
        return cls(mask, start, info, config, series, files, generation_config=generation)

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask) or not isinstance(self.start, Snapshot | Reference | Difference):
            raise TypeError(
                "a ticket must have a Mask and, as its start, a Snapshot, a Reference or a Difference; received "
                f"{type(self.mask).__name__} and {type(self.start).__name__}. Snapshot.capture(model) takes the "
                "weights of a model."
            )
        check_info(self.info)
        if self.series is not None and self.series[-1] != self.mask:
            raise ValueError("the mask of a ticket must be the last of its series; received another.")
        if isinstance(self.start, Difference) and self.start.mask != self.mask:
            raise ValueError("the mask of a ticket must be that of its difference; received another.")

    def __repr__(self) -> str:
        return "\n".join(["Ticket", *(f"  {name + ':':<8}{text}" for name, text in self._facts())])

    def _repr_html_(self) -> str:
        return html_table(("ticket", ""), self._facts()) + "\n" + self.mask._repr_html_()

    def _facts(self) -> list[tuple[str, str]]:
        """What is printed: a few names, each with a short text."""
        facts = [("mask", str(self.mask)), ("start", str(self.start))]
        if self.series is not None:
            facts.append(("series", str(self.series)))
        if self.model_config is not None:
            facts.append(("model", type(self.model_config).__name__))
        plain = [f"{key}={value!r:.60}" for key, value in self.info.items() if isinstance(value, str | int | float)]
        others = [key for key in self.info if not isinstance(self.info[key], str | int | float)]
        facts.append(("info", first_names([*plain, *others], limit=8)))
        return facts

    def apply_(self, model: nn.Module, *, strict: bool = True) -> None:
        """Put ``model`` where the ticket starts, in place: the stored weights, with pruned ones exactly zero.

        Args:
            model: The network. If the start is a reference, the network must be at those weights already.
            strict: Whether every difference that :meth:`differences` lists is an error. If not, everything that fits is
                restored, and a warning lists the differences. The mask must fit in any case.

        Raises:
            MaskMismatchError: The ticket is for another model; nothing was changed.
            RewindMismatchError: The start is a reference, and the model is not at those weights.
        """
        self.mask.check_fits(model)
        differences = self.differences(model)
        if differences and strict:
            remedy = "Pass" if self.model_config is None else "Build it from ticket.model_config, or pass"
            raise MaskMismatchError(
                f"the model must be the one that the ticket is for; received another: {_listed(differences)}. "
                f"{remedy} strict=False to restore what fits."
            )
        if differences:
            warnings.warn(f"the ticket is for another model: {_listed(differences)}", stacklevel=2)
            restore_fitting_(model, self.start)
        else:
            self.start.restore_(model)
        self.mask.apply_(model)

    def build_model(self, **where: Any) -> PreTrainedModel:
        """Build the ticket's model where it starts, with pruned weights at zero: nothing else need be known.

        Stored weights are put into the model, those of a seed are drawn again, those on the Hub are downloaded. All
        random generators stay as they are.

        Args:
            where: For a start on the Hub: ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Returns:
            The model, in evaluation mode as ``from_pretrained`` returns it, on the CPU.

        Raises:
            ValueError: The ticket does not know its model's class and configuration, as it is no transformers model; or
                transformers does not know the class.
            MaskMismatchError: The class or the configuration has changed since the ticket was saved.
            RewindMismatchError: The start is a reference, and the model that it names is at other weights.
        """
        kind, architecture = self._class(), self.info.get("architecture")
        if self.model_config is None or not isinstance(architecture, str):
            raise ValueError(
                "a ticket must know its model's class and configuration to build it; received "
                f"architecture={architecture!r:.80} and model_config={type(self.model_config).__name__}. Build the "
                "model yourself, and call ticket.apply_(model)."
            )
        if kind is None:
            package = self.info.get("defined_in")
            raise ValueError(
                f"the model's class must be one that transformers knows for a {type(self.model_config).__name__}; "
                f"received {architecture!r:.80}{f' of {package!r:.80}' if package else ''}. Import the module that "
                "registers it with AutoModel.register, or build the model yourself and call ticket.apply_(model)."
            )
        start = self.start.base(self.info.get("base_model")) if isinstance(self.start, Difference) else self.start
        model = build_start(kind, self.model_config, start, generation=self.generation_config, **where)
        self.apply_(model)
        return model.eval()

    def _class(self) -> type[PreTrainedModel] | None:
        architecture = self.info.get("architecture")
        if self.model_config is None or not isinstance(architecture, str):
            return None
        return known_class(architecture, self.model_config, self.info.get("defined_in"))

    def _is_named(self) -> bool:
        """Whether the weights to start from, or the base that they differ from, are named and not stored."""
        return isinstance(self.start, Reference) or (isinstance(self.start, Difference) and bool(base_id(self.info)))

    def _stored_model(self) -> PreTrainedModel | None:
        """Build the model at the stored weights; None if they are not stored, or are not those of the named class."""
        kind = self._class()
        if kind is None or self.model_config is None or not isinstance(self.start, Snapshot):
            return None
        model = build_start(kind, self.model_config, self.start, generation=self.generation_config)
        return None if structural_differences(self.start.tensors, named_state(model, numbers=False)) else model

    def _writes(self, model: PreTrainedModel | None) -> bool:
        """Whether the model at the stored weights is saved too."""
        if model is None or not isinstance(self.start, Snapshot):
            return False
        return self.model_file and loads_alike(model, self.start)

    def differences(self, model: nn.Module) -> list[str]:
        """List how a model differs from the one that the ticket is for: in class, base model, configuration, structure.

        Of the configurations only that counts which can change the function in evaluation, such as heads, activations
        and epsilons. Dropout rates, labels, dtype, cache and the implementation of attention do not count.
        """
        found = []
        architecture, package = self.info.get("architecture"), self.info.get("defined_in")
        if architecture and architecture != class_name(base_of(model)):
            found.append(f"class {architecture} in the ticket, {class_name(base_of(model))} here")
        elif package and (package == "transformers") != (defined_in(model) == "transformers"):
            found.append(f"class {architecture} of {package} in the ticket, of {defined_in(model)} here")
        base = base_id(self.info)
        here = getattr(getattr(model, "config", None), "_name_or_path", None)
        if base and here and base != here:
            found.append(f"base model {base!r} in the ticket, {here!r} here")
        found += self._configured(configuration_of(model))
        if isinstance(self.start, Snapshot):
            found += structural_differences(self.start.tensors, named_state(model, numbers=False))
        return found

    def _configured(self, config: Any) -> list[str]:
        if self.model_config is None or config is None:
            return []
        return configuration_differences(
            deciding(self.model_config), deciding(config), like=config, where=("in the ticket", "here")
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write mask, start, model configuration and card into ``folder``; none of the files is a pickle.

        Where the start is stored and the class is known, ``model.safetensors`` is the model at the start under the
        mask, for ``AutoModel.from_pretrained(folder)``; with ``model_file=False`` it is left out. Weights of several
        precisions are loaded from it in the widest. A new folder appears in one step. In an existing folder the files
        are replaced, but of a README.md only the library's own part. If matplotlib is installed and the history has
        more than one level, a picture of accuracy against density is added.

        Raises:
            FileExistsError: The folder holds a model, tokenizer or image processor that is not the ticket's.
            MaskMismatchError: The mask does not fit the stored weights.
        """
        if isinstance(self.start, Snapshot):
            self.mask.check_fits(self.start.tensors)
        model = self._stored_model()
        card = merged_card(Path(folder) / "README.md", self._card(".", model))
        with staged_folder(folder, last=CONFIG_NAME) as stage:
            extra = {"rewind": stage_start(stage, self.start), "processing": stage_processing(stage, self.processing)}
            if model is not None and self._writes(model):
                self.start.restore_(model)
                self.mask.apply_(model)
                extra |= stage_model(stage, model)
            extra |= stage_model_config(stage, self.model_config, self.info.get("architecture"))
            extra |= stage_generation_config(stage, self.generation_config)
            stale = stale_model(Path(folder), stage, self.processing)
            self._draw(stage / _PICTURE_NAME)
            if card is not None:
                (stage / "README.md").write_text(card, encoding="utf-8")
            extra |= {"info": self.info, **self.mask.config_keys()}
            if self.series is not None:
                self.series.stage(stage, extra=extra)
            else:
                stage_mask(stage, self.mask, extra=extra)
            if stale is not None:
                stale.unlink()

    def without_local_paths(self) -> Ticket:
        """Return the ticket without paths of this machine in its info and its model's configuration."""
        config, generation = copy.deepcopy((self.model_config, self.generation_config))
        for settings in filter(None, (config, generation)):
            clean_config_(settings)
        info, files = without_local_paths(self.info), without_places(self.processing)
        return replace(self, info=info, model_config=config, generation_config=generation, processing=files)

    @classmethod
    def from_pretrained(cls, source: str | Path, **where: Unpack[Where]) -> Ticket:
        """Load and check a ticket.

        Args:
            source: A folder, or the id of a repository on the Hub.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: A file is missing.
            MaskFileError: A file is malformed, damaged, of a newer format, or from another save.
        """
        folder = find_folder(source, cls.FILES, optional=cls.OPTIONAL_FILES, further=_further_names, **where)
        entries, config = read_mask(folder)
        mask = UnitMask.from_file(entries, config, path=folder / CONFIG_NAME)
        try:
            check_info(info := config.get("info", {}))
        except ValueError as error:
            raise MaskFileError(f"{folder / CONFIG_NAME}: {error}") from error
        rewind = read_start(folder, config, mask)
        if isinstance(rewind, Snapshot):
            try:
                mask.check_fits(rewind.tensors)
            except MaskMismatchError as error:
                raise MaskFileError(f"{folder}: mask and rewind weights must fit each other; {error}") from error
        model_config = read_ticket_model_config(folder, config)
        series = MaskSeries.from_pretrained(folder) if config["mask_type"] == "series" else None
        files, generation = read_processing(folder, config), read_generation_config(folder, config)
        return cls(mask, rewind, info, model_config, series, files, generation_config=generation)

    def card(self, source: str) -> str:
        """Write the README.md of a ticket that will be loaded from ``source``."""
        return self._card(source, self._stored_model())

    def _card(self, source: str, model: PreTrainedModel | None) -> str:
        """Write the card, given the model at the stored weights, if there is one."""
        kind = self._class()
        builds = model is not None or (kind is not None and self._is_named())
        drawn = len(self._accuracies()) > 1 and _can_draw()
        return ticket_card(
            self.mask,
            self.start,
            self.info,
            source,
            builds=builds,
            stored=kind if self._writes(model) else None,
            processing=self.processing,
            picture=_PICTURE_NAME if drawn else None,
        )

    def _accuracies(self) -> dict[float, list[float]]:
        points = [(r["sparsity"], r["metrics"].get("eval_accuracy")) for r in self.info.get("history", [])]
        return {sparsity: [accuracy] for sparsity, accuracy in points if accuracy is not None}

    def _draw(self, path: Path) -> None:
        if len(self._accuracies()) > 1 and _can_draw():
            title = name_of(str(self.info.get("architecture", "ticket")), self.info)
            plot_against_density(path, {"ticket": self._accuracies()}, ylabel="accuracy", title=title, percent=True)


def _further_names(folder: Path) -> list[str]:
    config = read_config(folder / CONFIG_NAME)
    return [*stated_processing(config), *stated_generation(config)]


def _listed(differences: list[str]) -> str:
    more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
    return "; ".join(differences[:8]) + more


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
