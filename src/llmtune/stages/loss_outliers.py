"""Training examples on which the base model's loss stands out: wrong labels, noise, or what it knows by heart."""

import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmtune import distributed
from llmtune.data.cleaning.outliers import describe_loss, find_loss_outliers
from llmtune.data.preparing.alone import alone
from llmtune.data.preparing.prepared import PreparedData
from llmtune.data.preparing.report import LOSS_OUTLIER
from llmtune.data.token_table import TokenTable
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.logs import say
from llmtune.models.load import load_frozen
from llmtune.runs.file_digest import sha256_of
from llmtune.runs.manifest import write_json
from llmtune.stages.context import RunContext
from llmtune.stages.training_choices import attention_for_evaluation
from llmtune.training.collectives import value_of_first, wait_for_all

_MOST_LISTED = 1000


def with_loss_outliers(context: RunContext, data: PreparedData) -> PreparedData:
    """The data with its loss outliers in the report, and without them where they are dropped.

    The losses are measured once for the same data, base weights and precision, and kept beside the prepared data; what
    stands out is kept in the run's folder, and is the same whenever the run goes on. Every process of the run takes
    part. A run that trains nothing takes what was found as its weights were trained on the same data, and measures
    nothing.
    """
    action = context.config.data.loss_outliers
    if action == "ignore" or not len(data.train):
        return data
    outliers = _recalled(context, data)
    if not value_of_first(float(outliers is not None), context.device):
        if context.config.is_trained_elsewhere:
            return data
        outliers = _found(context, data)
    assert outliers is not None
    told = {"count": len(outliers.listed), "listed": outliers.listed[:_MOST_LISTED]}
    data = replace(data, report=data.report | {"outliers": data.report["outliers"] | {"loss": told}})
    return data.without(outliers.found, LOSS_OUTLIER) if action == "drop" and outliers.found.any() else data


@dataclass(frozen=True)
class _Outliers:
    """The training examples whose loss stands out."""

    found: np.ndarray
    """bool [N] over the training split."""
    listed: list[str]
    """A line for each row that they are made of."""


def _found(context: RunContext, data: PreparedData) -> _Outliers:
    """What stands out, measured where it wasn't before; kept in the run's folder."""
    losses = _losses(context, data)
    found = find_loss_outliers(losses)
    outliers = _Outliers(found, _listed(data.train, losses, np.flatnonzero(found)))
    if distributed.is_first():
        entry = {"indices": np.flatnonzero(found).tolist(), "listed": outliers.listed}
        write_json(context.trained_run.loss_outliers_file, {**_stands_for(context, data), **entry})
    return outliers


def _recalled(context: RunContext, data: PreparedData) -> _Outliers | None:
    """What stood out as the weights' training began; None where that isn't known, or other data were trained on."""
    try:
        known = json.loads(context.trained_run.loss_outliers_file.read_bytes())
        if any(known[name] != value for name, value in _stands_for(context, data).items()):
            return None
        found = np.zeros(len(data.train), np.bool_)
        found[np.array(known["indices"], np.int64)] = True
        return _Outliers(found, [str(line) for line in known["listed"]])
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None


def _stands_for(context: RunContext, data: PreparedData) -> dict[str, str]:
    return {"data_digest": data.digest, "weights_digest": context.source.weights_digest}


def _listed(table: TokenTable, losses: np.ndarray, indices: np.ndarray) -> list[str]:
    """A line for each row whose examples stand out, in the order of files and lines."""
    known = losses[np.isfinite(losses)]
    median = float(np.median(known)) if len(known) else math.nan
    found = {_place(table.source(index)): describe_loss(losses, index, median) for index in indices.tolist()}
    return [f"{path}:{line}: {why}" for (path, line), why in sorted(found.items())]


def _place(source: str) -> tuple[str, int]:
    path, _, line = source.rpartition(":")
    return path, int(line)


def _losses(context: RunContext, data: PreparedData) -> np.ndarray:
    """Mean loss of each training example under the base model, float64 [N] in nats per supervised token."""
    weights, precision = context.source.weights_digest, context.precision.name
    kept = data.folder / f"base_loss-{weights[:16]}-{precision}.npy"
    work = "measuring the base model on the training examples"
    # The others wait for the first in `value_of_first`; a lock of their own would stand in its way.
    with alone(kept.with_suffix(".lock"), work) if distributed.is_first() else nullcontext():
        if value_of_first(float(_is_whole(kept, len(data.train))), context.device):
            return np.load(kept, allow_pickle=False)
        say(f"data.loss_outliers={context.config.data.loss_outliers}: {work}")
        losses = _measured(context, data)
        if distributed.is_first():
            _write(kept, losses)
    wait_for_all()
    return losses


def _measured(context: RunContext, data: PreparedData) -> np.ndarray:
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
    return report.loss_sums / np.maximum(1, report.supervised_tokens)


def _is_whole(file: Path, count: int) -> bool:
    """Whether a file of losses is the one that was written."""
    try:
        if sha256_of(file) != _digest_file(file).read_text(encoding="utf-8"):
            return False
        losses = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return losses.shape == (count,) and losses.dtype == np.float64


def _write(file: Path, losses: np.ndarray) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("wb") as opened:
        np.save(opened, losses, allow_pickle=False)
    digest = sha256_of(temporary)
    temporary.replace(file)
    _digest_file(file).write_text(digest, encoding="utf-8")


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256")
