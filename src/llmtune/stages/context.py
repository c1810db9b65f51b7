"""What the stages of one run share: its config taken apart, and what is loaded once."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmtune.config.run import RunConfig
from llmtune.data.prepared import PreparedData, prepare_data
from llmtune.errors import RunError
from llmtune.methods.method import Method
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.packing import PackingNeeds
from llmtune.models.precision import Precision, choose_device, choose_precision
from llmtune.models.source import ModelSource, locate_model
from llmtune.models.tokenizer import load_tokenizer, tokenizer_digest
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.tracking.tracker import Tracker

RESULT_STEP = 0
"""Step at which a run's single figures are logged: MLflow draws such a metric as a bar a run, not as a curve."""


@dataclass
class RunContext:
    """A run as its stages see it."""

    config: RunConfig
    folder: RunFolder
    manifest: Manifest
    tracker: Tracker

    @cached_property
    def device(self) -> torch.device:
        """This process's device."""
        return choose_device(self.config.hardware.kind)

    @cached_property
    def precision(self) -> Precision:
        """How matrix products are taken: as the run began, or as the config says."""
        begun = self.manifest.section("choices").get("precision")
        return choose_precision(begun or self.config.train.precision, self.device)

    @cached_property
    def cache_dir(self) -> Path:
        """Folder for prepared data and converted weights."""
        chosen = self.config.cache_dir or os.environ.get("LLMTUNE_CACHE") or "~/.cache/llmtune"
        return Path(chosen).expanduser()

    @cached_property
    def source(self) -> ModelSource:
        """The base model's files; the same weights as the run began with.

        Raises:
            RunError: the run began with other weights.
        """
        source = locate_model(self.config.model, self.cache_dir)
        begun = self.manifest.section("model").get("weights_digest")
        if begun not in (None, source.weights_digest):
            raise RunError(
                f"the base model {source.location} has other weights (sha256 {source.weights_digest[:12]}…) than the "
                f"run began with ({begun[:12]}…); restore them, or start a new run"
            )
        return source

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return load_tokenizer(self.source)

    @cached_property
    def data(self) -> PreparedData:
        """The examples as tokens."""
        return prepare_data(self.config.data, self.tokenizer, tokenizer_digest(self.tokenizer), self.cache_dir)

    @cached_property
    def method(self) -> Method:
        """The fine-tuning method."""
        return make_method(self.config.method)

    @property
    def how(self) -> LoadSettings:
        """How base weights stand in memory."""
        return LoadSettings(compute_dtype=self.precision.compute_dtype, device=self.device)

    @property
    def packing_needs(self) -> PackingNeeds:
        """What is asked of the attention implementation."""
        config = self.config
        return PackingNeeds(config.model.attention, config.train.packing, config.data.max_seq_len)

    @property
    def pad_token_id(self) -> int:
        """The token that fills padded rows; they are masked by position, so it may be any."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if isinstance(pad, int) else 0

    @property
    def trained_run(self) -> RunFolder:
        """The run whose weights are evaluated and exported: this one, or the one that it was made from."""
        return RunFolder(Path(self.config.source_run)) if self.config.source_run else self.folder

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that later stages take.

        Raises:
            RunError: the run has none.
        """
        best, final = self.trained_run.best_checkpoint, self.trained_run.final_checkpoint
        wanted = best if self.config.train.select_checkpoint == "best" and best.exists() else final
        if not wanted.exists():
            raise RunError(
                f"{self.trained_run.path} has no finished training; go on with: train run={self.folder.path}"
            )
        return wanted.resolve()

    def describe_model(self) -> Mapping[str, Any]:
        """The base model for the manifest."""
        described = {key: value for key, value in asdict(self.source).items() if key != "folder"}
        return {**described, "tokenizer_digest": tokenizer_digest(self.tokenizer)}
