"""Full fine-tuning: every weight trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmtune.config.method import FullConfig
from llmtune.errors import ModelError
from llmtune.models.load import LoadSettings, load_base
from llmtune.models.quiet import no_progress_bars
from llmtune.models.source import ModelSource


class FullMethod:
    """Every weight trains, held in float32 by default: a bf16 weight is too coarse for steps of 1e-5 of its size.

    Args:
        config: its settings.
        tokenizer: is saved beside the weights; None where it is the base model's own.
        master_dtype: type of the weights while they train.
    """

    name = "full"

    def __init__(
        self,
        config: FullConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        master_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._master_dtype = master_dtype

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The base with weights in the master type, whatever the checkpoint's."""
        return load_base(source, dtype=self._master_dtype, attention=how.attention, device=how.device)

    def make_trainable(self, base: PreTrainedModel, seed: int, new_ids: Sequence[int] = ()) -> nn.Module:
        """The same model, all weights requiring gradients; nothing is drawn at random."""
        del seed, new_ids
        return base.requires_grad_(True)

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """All weights and saved buffers, by the model's names; a tied head stands under both of its names."""
        return model.state_dict()

    def save(self, model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write safetensors in transformers' format and the master type; a tied head is written once."""
        folder.mkdir(parents=True, exist_ok=True)
        state = dict(self.weights(model) if weights is None else weights)
        with no_progress_bars():
            cast(PreTrainedModel, model).save_pretrained(folder, state_dict=state)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(folder)

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put saved weights back, bit for bit.

        Raises:
            ModelError: the folder can't be read or holds another model's weights.
        """
        trained = cast(PreTrainedModel, model)
        try:
            with no_progress_bars():
                saved, report = cast(Any, type(trained)).from_pretrained(
                    folder, dtype=trained.dtype, use_safetensors=True, output_loading_info=True
                )
            left_over = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
            if left_over:
                raise ModelError(f"the weights in {folder} don't fit the model: {left_over[0]} is missing or too many")
            trained.load_state_dict(saved.state_dict(), strict=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"the weights in {folder} can't be put into the model: {error}") from error

    def load_trained(self, source: ModelSource, folder: Path, how: LoadSettings) -> nn.Module:
        """The trained model with float32 weights, which hold every master type's values, in evaluation mode."""
        model = load_base(source, dtype=torch.float32, attention=how.attention, device=how.device, folder=folder)
        return model.requires_grad_(False).eval()
