"""Tiny models as each method trains on them, and rows that a tiny model can learn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from llmtune.config.model import ModelConfig
from llmtune.models.load import LoadSettings
from llmtune.models.source import ModelSource, locate_model
from llmtune.models.token_loss import token_loss_sum
from llmtune.models.tokenizer import load_tokenizer

HOW = LoadSettings(torch.float32, torch.device("cpu"))


@pytest.fixture
def source(tiny_model: Path, tmp_path: Path) -> ModelSource:
    """Each tiny model in turn, as a located source."""
    return locate_model(ModelConfig(name=tiny_model.name, source="folder", path=str(tiny_model)), tmp_path)


@pytest.fixture
def mean_loss(source: ModelSource, examples_file: Path) -> Callable[[nn.Module], torch.Tensor]:
    """The mean loss of a model over eight examples laid end to end."""
    tokenizer = load_tokenizer(source)
    rows = [json.loads(line) for line in examples_file.read_text().splitlines()[:8]]
    ids = [torch.tensor(tokenizer(row["prompt"] + row["completion"]).input_ids) for row in rows]
    lengths = [len(example) for example in ids]
    row = torch.cat(ids)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    predicted = positions[0].nonzero().squeeze(1)
    supervised = (predicted, row[0, predicted])

    def compute(model: nn.Module) -> torch.Tensor:
        total = token_loss_sum(
            model, input_ids=row, position_ids=positions, attention_mask=None, lengths=lengths, supervised=supervised
        )
        assert total is not None
        return total / predicted.numel()

    return compute
