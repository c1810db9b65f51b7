"""What every export format is, and what it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from llmtune.config.export import ExportConfig
from llmtune.data.token_table import TokenTable
from llmtune.export.report import ParityReport
from llmtune.methods.method import Method
from llmtune.models.adapter_files import is_adapter
from llmtune.models.load import device_for_float32
from llmtune.models.precision import Precision
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


class ExportFormat(Protocol):
    """One form in which a tuned model is shipped."""

    name: str

    def check_supported(self, context: ExportContext) -> None:
        """Refuse, before any work, what this format can't hold.

        Raises:
            UserError: the method or the model doesn't fit the format.
        """
        ...

    def num_bytes(self, context: ExportContext) -> int:
        """About how much room the files take."""
        ...

    def write(self, context: ExportContext, folder: Path) -> None:
        """Write the files to `folder`, which is empty."""
        ...

    def check(self, context: ExportContext, folder: Path) -> ParityReport:
        """Load `folder` in its own runtime and compare it with the trained model."""
        ...

    def loading_code(self, context: ExportContext) -> str:
        """Python that loads the files from a folder `FOLDER`, for the model card."""
        ...
