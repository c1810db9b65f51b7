"""A model as it is used, not trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llmtune.models.precision import Precision


@contextmanager
def inference(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Turn off gradients and dropout inside the block; the model's train or eval mode is restored after it."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), precision.autocast():
            yield
    finally:
        model.train(was_training)
