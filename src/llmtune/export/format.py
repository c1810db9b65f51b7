"""What every export format is, and what it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from llmtune.config.export import ExportConfig
from llmtune.data.token_table import TokenTable
from llmtune.export.report import Bounds, Figure
from llmtune.methods.method import Method
from llmtune.models.adapter_files import is_adapter
from llmtune.models.load import device_for_float32
from llmtune.models.precision import Precision
from llmtune.models.prompting import stop_token_ids
from llmtune.models.source import ModelSource


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says beyond what the files themselves show; nothing in it may name a folder."""

    title: str
    """Name of the tuned model."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method and of training, by name."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Where the examples come from: digest, rows, licence, by name."""
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """Held-out figures by name: the base model's and the tuned one's; None where one wasn't measured."""
    is_trained_here: bool = True
    """Whether llmtune trained it; else it came as an adapter or a model made elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ExportSubject:
    """What can be said of an export before anything is trained."""

    source: ModelSource
    method: str
    """Name of the method."""
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The base model's config."""
        return AutoConfig.from_pretrained(self.source.folder, trust_remote_code=self.source.trust_remote_code)

    @cached_property
    def end_token_ids(self) -> list[int]:
        """The tokens that end a text: the tokenizer's first, then those that the base's own settings name."""
        folder = self.source.folder
        if (folder / GENERATION_CONFIG_NAME).exists():
            return stop_token_ids(GenerationConfig.from_pretrained(folder), self.tokenizer)
        return stop_token_ids(GenerationConfig.from_model_config(self.config), self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class ExportContext:
    """A trained model and what its export needs."""

    method: Method
    source: ModelSource
    checkpoint: Path
    """Folder that the method saved the trained weights to."""
    tokenizer: PreTrainedTokenizerBase
    examples: TokenTable
    """Examples that the export is compared on; never the test set's."""
    split: str
    """Which split they are of: `validation`, or `training` where there is none."""
    settings: ExportConfig
    facts: CardFacts
    precision: Precision
    """In which the model was trained; a 4-bit model is measured in it."""
    device: torch.device

    @cached_property
    def float32_device(self) -> torch.device:
        """Where the model is merged and compared in float32: the device, or the CPU where it doesn't fit."""
        return device_for_float32(self.source, self.device)

    @property
    def has_adapter(self) -> bool:
        """Whether the trained weights are an adapter beside the base, not a whole model."""
        return is_adapter(self.checkpoint)

    @cached_property
    def subject(self) -> ExportSubject:
        """What is known of it before training."""
        return ExportSubject(source=self.source, method=self.method.name, tokenizer=self.tokenizer)


class Compared(Enum):
    """Which model an export has to equal."""

    UNMERGED = "unmerged"
    """The trained model on the base that it is merged into."""
    TRAINED = "trained"
    """The trained model as it was trained."""


class ExportFormat:
    """One form in which a tuned model is shipped; a format is one file, and one line of `EXPORT_FORMATS`."""

    name: str
    """As `export.formats` names it, also its folder's name."""
    runtime: str
    """Module of `export.shipped` that runs it; it stands beside the files as `runtime.py`."""
    packages: str
    """What pip has to install for it, in the words of its command line."""
    compared_with: Compared = Compared.UNMERGED
    is_quantised: bool = False
    """Whether its weights are coarser than the base's own."""
    library: str = "transformers"
    """As the Hub names what loads it, for the model card."""
    note: str = ""
    """What a person should know of it, for the terminal and the model card."""

    def why_not(self, subject: ExportSubject) -> str | None:
        """Why this format can't hold the model, in words that follow its name; None where it can. No weight is read."""
        del subject
        return None

    def num_bytes(self, context: ExportContext) -> int:
        """About how much room on disk its files take at most while they are written."""
        raise NotImplementedError

    def write(self, context: ExportContext, folder: Path) -> None:
        """Write the model's files to `folder`, which is empty."""
        raise NotImplementedError

    def needs(self, context: ExportContext) -> str:
        """What pip has to install for this model's files."""
        del context
        return self.packages

    @property
    def judge(self) -> str:
        """Module whose `Runtime` the gate asks: the folder's own, but where that can't run here."""
        return "runtime"

    @property
    def runtime_words(self) -> str:
        """What it was asked in, for the record."""
        return f"{self.name} in {self.packages.split()[0]}"

    def runtime_options(self, context: ExportContext) -> dict[str, Any]:
        """Arguments of its `Runtime` beside the folder, where the check needs other than a user's."""
        del context
        return {}

    def bounds(self, context: ExportContext) -> Bounds:
        """How far the files may be from the trained model."""
        raise NotImplementedError

    def more_figures(self, context: ExportContext, folder: Path) -> list[Figure]:
        """What else is measured of the files, beyond what every format is asked."""
        del context, folder
        return []

    def loading_code(self, context: ExportContext) -> str:
        """Python that loads the files from a folder `FOLDER`, for the model card; empty where `run.py` says it all."""
        del context
        return ""
