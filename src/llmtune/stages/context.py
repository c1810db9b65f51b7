"""What the stages of one run share: its config taken apart, and what is loaded once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llmtune.config.paths import usable_cache_folder, writing
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_config
from llmtune.data.preparing.general import GeneralText, prepare_general
from llmtune.data.preparing.prepared import PreparedData, prepare_data
from llmtune.errors import ConfigError, RunError
from llmtune.logs import say, warn
from llmtune.methods.method import Method
from llmtune.methods.registry import make_method
from llmtune.models.adapter_files import is_adapter, read_adapter
from llmtune.models.load import LoadSettings
from llmtune.models.packing import PackingNeeds
from llmtune.models.precision import DTYPES, Precision, choose_device, choose_precision
from llmtune.models.prompting import pad_token_id
from llmtune.models.source import ModelSource, locate_model, max_positions
from llmtune.models.tokenizer import Adaptation, load_vocabulary, tokenizer_digest
from llmtune.models.vocabulary import Vocabulary
from llmtune.runs.layout import RunFolder
from llmtune.runs.manifest import Manifest
from llmtune.stages.adaptation import check_same_tokens, describe_adaptation, find_adaptation
from llmtune.tracking.tracker import Tracker
from llmtune.training.checkpoint import find_damage

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

    @property
    def begun_choices(self) -> dict[str, Any]:
        """What was chosen when the weights' training began; empty where it wasn't yet, or other choices are typed."""
        own = self.manifest.section("choices")
        if own or self.config.source_run is None:
            return own
        begun = Manifest(self.trained_run.manifest_file).section("choices")
        if begun and _typed_choices(load_config(self.trained_run.config_file)) != _typed_choices(self.config):
            return {}
        return begun

    @cached_property
    def precision(self) -> Precision:
        """How matrix products are taken: as the run began, or as the config says.

        Raises:
            RunError: the run began with a type that this device can't compute natively.
        """
        begun = self.begun_choices.get("precision")
        if begun is None:
            return choose_precision(self.config.train.precision, self.device)
        try:
            return replace(choose_precision(begun, self.device), reason="as the run began")
        except ConfigError as error:
            here = choose_precision("auto", self.device)
            if self.config.source_run is not None:
                say(f"precision: {here.name}, not {begun} as in training: {here.reason}")
                return here
            other = f"train.precision={here.name} measures the trained weights in a run of its own"
            cure = other if self.manifest.stage("train") else "start a new run"
            raise RunError(
                f"precision: the run began with {begun}, and here it would be {here.name} ({here.reason}); go on on a "
                f"device that computes {begun}, or {cure}"
            ) from error

    @cached_property
    def cache_dir(self) -> Path:
        """Folder for prepared data and converted weights."""
        return usable_cache_folder(self.config.cache_dir)

    @cached_property
    def adaptation(self) -> Adaptation:
        """How the tokenizer differs from the base model's, as the run began."""
        is_trained = self.config.is_trained_elsewhere or bool(self.manifest.stage("train"))
        return find_adaptation(self.config, self._begun_model, is_trained=is_trained)

    @property
    def _begun_model(self) -> dict[str, Any]:
        """What was recorded of the model when this run began, or else the one that it was made from."""
        return self.manifest.section("model") or Manifest(self.trained_run.manifest_file).section("model")

    @cached_property
    def source(self) -> ModelSource:
        """The base model's files; the same weights as the run began with, and the vocabulary as the run changes it.

        Raises:
            RunError: the run began with other weights or added tokens.
        """
        return replace(self._base, vocabulary=self._tokenizer_and_vocabulary[1])

    @cached_property
    def _base(self) -> ModelSource:
        source = locate_model(self.config.model, self.cache_dir)
        begun = Manifest(self.trained_run.manifest_file).section("model").get("weights_digest")
        if begun not in (None, source.weights_digest):
            raise RunError(
                f"the base model {source.location} has other weights (sha256 {source.weights_digest[:12]}…) than the "
                f"run began with ({begun[:12]}…); restore them, or start a new run"
            )
        return source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer with the run's template, tokens and end of text."""
        return self._tokenizer_and_vocabulary[0]

    @cached_property
    def _tokenizer_and_vocabulary(self) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
        adaptation = self.adaptation  # before the base: a file that is missing is told before a model is fetched
        tokenizer, vocabulary = load_vocabulary(self._base, adaptation)
        if self.config.source_run is not None or adaptation.folder is None:
            check_same_tokens(self._begun_model, vocabulary)
        return tokenizer, vocabulary

    @cached_property
    def data(self) -> PreparedData:
        """The examples as tokens; the same as the run began with.

        Raises:
            ConfigError: the model can't take examples of that length.
            RunError: the run began with other examples.
        """
        limit, longest = max_positions(self.source), self.config.data.max_seq_len
        if limit is not None and longest > limit:
            raise ConfigError(
                f"data.max_seq_len={longest}: {self.source.name} takes {limit} tokens at most; set {limit} or less."
            )
        from llmtune.stages.loss_outliers import with_loss_outliers  # it needs a context's model

        with writing("cache_dir", self.cache_dir):
            data = prepare_data(self.config.data, self.tokenizer, tokenizer_digest(self.tokenizer), self.cache_dir)
        data = with_loss_outliers(self, data)
        recorded = self.manifest.section("data")
        begun = recorded.get("digest")
        if begun not in (None, data.digest):
            if "sources" not in recorded:
                raise RunError(
                    f"{self.folder.path} was prepared by an older llmtune, and this one makes other examples of the "
                    "same files; go on with that version, or start a new run without run="
                )
            raise RunError(
                f"the examples are others (digest {data.digest[:12]}…) than the run began with ({begun[:12]}…); "
                "restore the files, or start a new run"
            )
        return data

    @cached_property
    def general(self) -> GeneralText | None:
        """General text as tokens, to see what is forgotten; None where none is asked for or to be had.

        Raises:
            DataError: `evaluate.general_path` can't be read, or holds no example.
        """
        evaluate = self.config.evaluate
        if not evaluate.num_general_examples:
            return None
        tokenizer = (self.tokenizer, tokenizer_digest(self.tokenizer))
        path, longest = evaluate.general_path, self.config.data.max_seq_len
        with writing("cache_dir", self.cache_dir):
            found = prepare_general(path, evaluate.num_general_examples, longest, tokenizer, self.cache_dir)
        if found is None:
            say("no installed package describes itself: what is forgotten isn't measured without evaluate.general_path")
        return found

    @cached_property
    def method(self) -> Method:
        """The fine-tuning method."""
        tokenizer = None if self.adaptation.is_empty else self.tokenizer
        return make_method(self.config.method, tokenizer, DTYPES[self.config.train.master_dtype])

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
        return pad_token_id(self.tokenizer)

    @property
    def trained_run(self) -> RunFolder:
        """The run whose weights are evaluated and exported: this one, or the one that it was made from."""
        return RunFolder(Path(self.config.source_run)) if self.config.source_run else self.folder

    @cached_property
    def checkpoint(self) -> Path:
        """The folder of the weights that later stages take, every file of it as it was saved.

        Raises:
            RunError: the run has none, or it is damaged.
        """
        if self.config.method.name == "none":
            return self.source.folder
        if self.config.source_weights is not None:
            return self._named_weights(Path(self.config.source_weights))
        run, select = self.trained_run.path, self.config.train.select_checkpoint
        wanted = self.trained_run.chosen_checkpoint(select)
        if not wanted.exists():
            raise RunError(f"{run} has no finished training; go on with: train run={run}")
        damage = find_damage(wanted)
        if damage is not None:
            other = "final" if select == "best" else "best"
            raise RunError(f"{wanted} is damaged: {damage}; take train.select_checkpoint={other}, or train again")
        return wanted.resolve()

    def check_base_of(self, adapter: Path) -> None:
        """Check that an adapter belongs to this run's base model, as far as it can be told.

        Raises:
            RunError: it was trained on another base.
        """
        if adapter.parent.name != "checkpoints":
            base = read_adapter(adapter, str(adapter)).base
            if base != self.source.location:
                warn(
                    f"the adapter in {adapter} names {base} as its base model, and it is put on {self.source.location}"
                )
            return
        made_on = Manifest(RunFolder(adapter.parent.parent).manifest_file).section("model")
        if made_on.get("weights_digest") not in (None, self.source.weights_digest):
            raise RunError(
                f"{adapter} was trained on {made_on.get('name')} (sha256 {made_on['weights_digest'][:12]}…), not on "
                f"{self.source.name} ({self.source.weights_digest[:12]}…); name its base with model="
            )

    def _named_weights(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise RunError(f"{folder} isn't there any more; name weights that are, with run=")
        damage = find_damage(folder) if folder.parent.name == "checkpoints" else None
        if damage is not None:
            raise RunError(f"{folder} is damaged: {damage}; name another checkpoint")
        if is_adapter(folder):
            self.check_base_of(folder)
        return folder

    def describe_model(self) -> Mapping[str, Any]:
        """The base model for the manifest."""
        described = {key: value for key, value in asdict(self.source).items() if key not in ("folder", "vocabulary")}
        adapted = describe_adaptation(self.adaptation, self.source.vocabulary, str(self.tokenizer.eos_token))
        return {**described, "tokenizer_digest": tokenizer_digest(self.tokenizer), **adapted}


def _typed_choices(config: RunConfig) -> tuple[str, bool, str, str]:
    """What a person may say about how a run computes."""
    return config.train.precision, config.train.packing, config.model.attention, config.model.decoder
