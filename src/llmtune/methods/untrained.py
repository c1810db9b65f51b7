"""No method: a whole model, measured, exported and asked as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from llmtune.errors import RunError
from llmtune.models.load import LoadSettings, load_frozen
from llmtune.models.source import ModelSource


class UntrainedMethod:
    """The base model alone; there is nothing to train, to save or to put back."""

    name = "none"

    def load(self, source: ModelSource, how: LoadSettings) -> PreTrainedModel:
        """The model as it stands where its weights don't train."""
        return load_frozen(source, how)

    def make_trainable(self, base: PreTrainedModel, seed: int, new_ids: Sequence[int] = ()) -> nn.Module:
        """Never done.

        Raises:
            RunError: always.
        """
        raise RunError("nothing trains here: the model is taken as it is; start a new run with method= to train it")

    def weights(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Never asked for: see `make_trainable`."""
        raise RunError("nothing was trained, so there is nothing to save")

    def save(self, model: nn.Module, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Never done: see `make_trainable`."""
        raise RunError("nothing was trained, so there is nothing to save")

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Never done: see `make_trainable`."""
        raise RunError("nothing was trained, so there is nothing to put back")

    def load_trained(self, source: ModelSource, folder: Path, how: LoadSettings) -> nn.Module:
        """The model itself, in evaluation mode."""
        return load_frozen(source, how).eval()
