"""Training examples on which the base model's loss stands out: wrong labels, noise, or what it knows by heart."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llmtune import distributed
from llmtune.data.cleaning.outliers import describe_loss, find_loss_outliers
from llmtune.data.preparing.prepared import PreparedData
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.logs import say
from llmtune.models.load import load_frozen
from llmtune.stages.context import RunContext
from llmtune.stages.training_choices import attention_for_evaluation
from llmtune.training.collectives import value_of_first, wait_for_all

_MOST_LISTED = 1000
_REASON = "the base model's loss stands out"


def with_loss_outliers(context: RunContext, data: PreparedData) -> PreparedData:
    """The data with its loss outliers in the report, and without them where they are dropped.

    The losses are measured once for the same data, base weights and precision, and kept beside the prepared data. Every
    process of the run takes part.
    """
    action = context.config.data.loss_outliers
    if action == "ignore" or not len(data.train):
        return data
    losses = _losses(context, data)
    found = find_loss_outliers(losses)
    median = float(np.median(losses))
    listed = [
        f"{data.train.source(int(index))}: {describe_loss(losses, int(index), median)}"
        for index in np.flatnonzero(found)[:_MOST_LISTED]
    ]
    outliers: dict[str, Any] = {"count": int(found.sum()), "listed": listed}
    report = data.report | {"outliers": data.report["outliers"] | {"loss": outliers}}
    data = replace(data, report=report)
    return data.without(found, _REASON) if action == "drop" and found.any() else data


def _losses(context: RunContext, data: PreparedData) -> np.ndarray:
    """Mean loss of each training example under the base model, float64 [N] in nats per supervised token."""
    weights, precision = context.source.weights_digest, context.precision.name
    kept = data.folder / f"base_loss-{weights[:16]}-{precision}.npy"
    if value_of_first(float(_is_whole(kept, len(data.train))), context.device):
        return np.load(kept, allow_pickle=False)
    say(f"data.loss_outliers={context.config.data.loss_outliers}: measuring the base model on the training examples")
    model = load_frozen(context.source, context.how)
    settings = LossSettings(
        batch_tokens=context.config.evaluate.batch_tokens,
        packed=attention_for_evaluation(context, model).packed,
        pad_token_id=context.pad_token_id,
        precision=context.precision,
        device=context.device,
        description="base model's loss",
    )
    report = evaluate_loss(model, data.train, settings)
    losses = report.loss_sums / np.maximum(1, report.supervised_tokens)
    if distributed.is_first():
        _write(kept, losses)
    wait_for_all()
    return losses


def _is_whole(file: Path, count: int) -> bool:
    try:
        losses = np.load(file, allow_pickle=False)
    except (OSError, ValueError):
        return False
    return losses.shape == (count,) and losses.dtype == np.float64


def _write(file: Path, losses: np.ndarray) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as opened:
        np.save(opened, losses, allow_pickle=False)
    temporary.replace(file)
