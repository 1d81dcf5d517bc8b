"""SparseModel: a finished sparse model as anyone loads it, with its mask beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from ...masks.config import CONFIG_NAME, read_config
from ...masks.file import stage_mask
from ...masks.mask import Mask
from ...networks.names import named_weights
from ...networks.shards import class_name
from ...storage.atomic import staged_folder
from ...storage.hub_mixin import HubMixin
from ...structured import UnitMask
from .card import TAGS, code_block, loading_code, merged_card, parameters, whole_card
from .checkpoint import load_model
from .local_paths import clean_config_, is_local_path
from .model_file import save_model
from .processing import loaders, processing_files, read_processing, stage_processing, without_places
from .transfer import base_model, model_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...storage.hub_mixin import Where


@dataclass(frozen=True)
class SparseModel(HubMixin):
    """A trained model whose pruned weights are exactly zero, and its mask.

    It is saved as the plain transformers model that it is, which anyone loads without this library, with the mask
    beside it. :class:`~hf_lottery.SparseTrainer` saves such folders too. A push is one commit.

    Attributes:
        model: The model. Its pruned weights are zero.
        mask: Which weights stay.
        processing: The files of its tokenizer or image processor: name -> bytes, as
            :func:`~hf_lottery.hf.hub.processing.processing_files` gives them.

    Raises:
        TypeError: The model is not one of transformers, or has adapters or a wrapper around it.
        MaskMismatchError: The mask is for another model.
        ValueError: A pruned weight is not zero.

    Example::

        SparseModel.of(model, mask, processing=tokenizer).push_to_hub("me/bert-sst2-sparse")
        AutoModelForSequenceClassification.from_pretrained("me/bert-sst2-sparse")
        SparseModel.from_pretrained("me/bert-sst2-sparse").mask
    """

    model: PreTrainedModel
    mask: Mask
    processing: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, PreTrainedModel):
            raise TypeError(
                f"model must be a model of transformers; received {type(self.model).__name__}. Merge adapters with "
                "merge_adapter(model, mask), and pass the model inside a wrapper of torch."
            )
        self.mask.check_fits(self.model)
        named = named_weights(self.model)
        for name, entry in self.mask.items():
            weight = named[name].detach()
            if alive := int((weight[~entry.to(weight.device)] != 0).sum()):
                raise ValueError(
                    f"pruned weights must be zero; received {alive:,} of {name!r} that are not. Train under "
                    "keep_sparse, or call mask.apply_(model)."
                )

    @classmethod
    def of(cls, model: PreTrainedModel, mask: Mask, *, processing: object = None) -> SparseModel:
        """Put a model, its mask, and its tokenizer or image processor together.

        Args:
            model: The model.
            mask: Which weights stay.
            processing: The tokenizer or image processor, as a Trainer takes it as ``processing_class``.
        """
        return cls(model, mask, processing_files(processing))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, mask, tokenizer and card into ``folder``; none of the files is a pickle."""
        card = merged_card(Path(folder) / "README.md", self.card("."))
        with staged_folder(folder, last=CONFIG_NAME) as stage:
            save_model(stage, self.model)
            extra = {"processing": stage_processing(stage, self.processing)}
            if card is not None:
                (stage / "README.md").write_text(card, encoding="utf-8")
            stage_mask(stage, self.mask, extra={**extra, **self.mask.config_keys()})

    def without_local_paths(self) -> SparseModel:
        """Return the same model without paths of this machine in its configuration."""
        model = copy.copy(self.model)  # shares the weights
        model.config = copy.deepcopy(self.model.config)
        clean_config_(model.config)
        return replace(self, model=model, processing=without_places(self.processing))

    @classmethod
    def from_pretrained(cls, source: str | Path, **where: Unpack[Where]) -> SparseModel:
        """Load a model and the mask beside it, both of one commit.

        Args:
            source: A folder, or the id of a repository on the Hub.
            where: ``revision``, ``subfolder``, ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            FileNotFoundError: There is no model, or no mask.
            MaskFileError: The mask is damaged.
            MaskMismatchError: The mask is for another model.
            ValueError: A pruned weight is not zero, or the class is not one of the transformers library.
        """
        folder = model_folder(source, **where)
        mask = UnitMask.from_folder(folder)
        model = load_model(folder)
        model.config.name_or_path = str(source)
        return cls(model, mask, read_processing(folder, read_config(folder / CONFIG_NAME)))

    def card(self, source: str) -> str:
        """Write the README.md of a sparse model that will be loaded from ``source``."""
        source = "." if is_local_path(source) else source
        base = base_model(self.model.config)
        data = ModelCardData(
            library_name="transformers",
            tags=TAGS,
            base_model=base["id"] if base else None,
            model_name="model" if source == "." else source.split('"')[0],
        )
        plain = loading_code(source, type(self.model), loaders(self.processing))
        ours = code_block(
            "from hf_lottery import keep_sparse\nfrom hf_lottery.hf import SparseModel",
            [
                f'sparse = SparseModel.from_pretrained("{source}")',
                "with keep_sparse(sparse.model, sparse.mask):  # pruned weights stay at zero",
                "    ...  # train sparse.model",
            ],
        )
        text = _TEXT.format(
            name=class_name(self.model),
            kept=self.mask.kept,
            weights=self.mask.weights,
            sparsity=self.mask.sparsity,
            base=f", pruned from `{base['id']}`" if base else "",
            plain=plain,
            ours=ours,
            layers=parameters(self.mask),
        )
        return whole_card(data, text)


_TEXT = """# A sparse `{name}`

{kept:,} of {weights:,} prunable weights stay, and the others are exactly zero: sparsity **{sparsity:.2%}**{base}.

## How to load it

It is a plain model of transformers:

{plain}

With its mask, to train it further:

{ours}

<details><summary>What stays, by parameter</summary>

{layers}

</details>

## Limits

The network is sparse, not faster: dense kernels multiply by zero at the same speed.
"""
