"""One of several gloo processes: trains the tiny model and measures it, and writes what came out. Started by a test.

Arguments: model folder, folder for results.
"""

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from tiny_training import CPU, FULL, LORA, Examples, Recorder, Setup, make_parts, weights_digest

from llmtune.config.method import MethodConfig
from llmtune.data.plan import divide
from llmtune.distributed import num_processes, rank
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.models.precision import Precision
from llmtune.models.token_loss import CHUNKED, WHOLE, set_loss
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.null import NullTracker
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import load_checkpoint
from llmtune.training.loop import train
from llmtune.training.parts import TrainParts, TrainState


def main(model_folder: Path, results: Path) -> None:
    """Train in several ways, once without the exchange of gradients; measure; go on with what others have begun."""
    torch.set_num_threads(1)
    meeting = f"file://{results / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank(), world_size=num_processes(), timeout=timedelta(seconds=60)
    )
    begun = results.parent / "after-20-steps"
    if begun.exists():
        outcome = {begun.name: _go_on(model_folder, begun)}
    else:
        outcome = _train_and_evaluate(model_folder, results)
    (results / f"rank{rank()}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


def _train_and_evaluate(model_folder: Path, results: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = {
        "lora": _train(model_folder, results / "lora", LORA),
        "full": _train(model_folder, results / "full", FULL),
        "padded": _train(model_folder, results / "padded", LORA, packed=False),
        "whole logits": _train(model_folder, results / "whole", LORA, loss=WHOLE),
        "unsupervised": _train(model_folder, results / "unsupervised", LORA, packed=False, unsupervised=True),
        "evaluation": _evaluate(model_folder),
    }
    with patch("llmtune.training.loop.sum_gradients"):
        outcome["no exchange"] = _train(model_folder, results / "no-exchange", LORA)
    with patch("llmtune.process_group.exchange"):
        outcome["not added up"] = _evaluate(model_folder)
    return outcome


def _setup(method: MethodConfig, *, packed: bool = True) -> Setup:
    """Ten epochs of 17 examples, four a step: the last step of an epoch has one example."""
    return Setup(
        method,
        micro_batch_size=2,
        gradient_accumulation_steps=2 // num_processes(),
        num_processes=num_processes(),
        packed=packed,
        num_examples=17,
        num_epochs=10,
        learning_rate=1e-3,
    )


def _train(
    model_folder: Path,
    folder: Path,
    method: MethodConfig,
    *,
    packed: bool = True,
    loss: str = CHUNKED,
    unsupervised: bool = False,
) -> dict[str, Any]:
    parts, recorder = make_parts(model_folder, _setup(method, packed=packed)), Recorder()
    set_loss(parts.model, loss)
    if unsupervised:
        _take_supervision(parts)
    validation = ValidationCallback(
        lambda model: 1.0 + rank(), ValidationSettings(4, None), MetricsLog(folder / "metrics.jsonl"), NullTracker()
    )
    checkpoints = CheckpointCallback(RunFolder(folder), CheckpointSettings(4, None, keep=99))
    state = train(parts, TrainState(), [recorder, validation, checkpoints])
    return {
        "steps": recorder.steps,
        "weights": weights_digest(parts.model),
        "best": state.best_validation_loss,
        "num_micro_batches": [len(parts.plan.step(step, rank()).micro_batches) for step in range(5)],
        "num_supervised": [_num_supervised(parts, step) for step in range(50)],
    }


def _take_supervision(parts: TrainParts) -> None:
    """Leave one example in six with a supervised token, so that some shares of steps have none."""
    table = cast(Examples, parts.table)
    for index in range(len(table)):
        if index % 6:
            table.labels(index)[:] = -100
            table.num_supervised_tokens[index] = 0


def _num_supervised(parts: TrainParts, step: int) -> int:
    """Supervised tokens in this process's share of a step."""
    shares = parts.plan.step(step, rank()).micro_batches
    return sum(int(parts.table.num_supervised_tokens[index]) for share in shares for index in share)


def _evaluate(model_folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of splits that the processes can't share evenly, or that have fewer examples than there are processes."""
    model = make_parts(model_folder, _setup(LORA)).model
    how = LossSettings(
        batch_tokens=60, packed=True, pad_token_id=2, precision=Precision("fp32", "cpu", "for the test"), device=CPU
    )
    reports = {count: evaluate_loss(model, cast(Any, Examples(count)), how) for count in (1, 2, 7, 33)}
    return {
        str(count): {
            "loss": report.loss,
            "perplexity": report.perplexity,
            "bits_per_byte": report.bits_per_byte,
            "num_examples": report.num_examples,
            "num_supervised_tokens": report.num_supervised_tokens,
            "loss_sums": report.loss_sums.tolist(),
        }
        for count, report in reports.items()
    }


def _go_on(model_folder: Path, begun: Path) -> dict[str, Any]:
    """The steps after a checkpoint that another number of processes has saved."""
    settings = _setup(LORA)
    size, accumulation = divide(4, num_processes(), settings.micro_batch_size)
    parts = make_parts(model_folder, replace(settings, micro_batch_size=size, gradient_accumulation_steps=accumulation))
    recorder = Recorder()
    train(parts, load_checkpoint(begun / "checkpoint-20", parts), [recorder])
    return {"steps": recorder.steps}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
