"""One of several gloo processes: trains the tiny model and measures it, and writes what came out. Started by a test.

Arguments: model folder, folder for results, a checkpoint to go on from.
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

TOKEN = 7
"""Of the examples' 97, which is in some steps alone."""


def main(model_folder: Path, results: Path, checkpoint: Path) -> None:
    """Train in several ways, measure, go on with what others have begun; write what came out."""
    torch.set_num_threads(1)
    meeting = f"file://{results / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank(), world_size=num_processes(), timeout=timedelta(seconds=60)
    )
    outcome = {**train_and_evaluate(model_folder, results), "gone on": go_on(model_folder, checkpoint)}
    (results / f"rank{rank()}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


def train_and_evaluate(model_folder: Path, results: Path) -> dict[str, Any]:
    """Train in several ways, some of them broken, and measure."""
    outcome: dict[str, Any] = {
        "lora": _train(model_folder, results / "lora", LORA, num_epochs=10),
        "full": _train(model_folder, results / "full", FULL),
        "padded": _train(model_folder, results / "padded", LORA, packed=False),
        "whole logits": _train(model_folder, results / "whole", LORA, loss=WHOLE),
        "unsupervised": _train(model_folder, results / "unsupervised", LORA, packed=False, unsupervised=True),
        "idle": _train(model_folder, results / "idle", LORA, idle=True),
        "tokens": _train(model_folder, results / "tokens", LORA, tokens_per_step=70),
        "evaluation": _evaluate(model_folder),
    }
    with patch("llmtune.training.loop.sum_gradients"):
        outcome["no exchange"] = _train(model_folder, results / "no-exchange", LORA)
    with patch("llmtune.training.collectives._with_gradient", lambda parameters: parameters):
        outcome["zeros for all"] = _train(model_folder, results / "zeros", LORA, idle=True)
    with patch("llmtune.process_group.exchange"):
        outcome["not added up"] = _evaluate(model_folder)
    return outcome


def _setup(
    method: MethodConfig, *, packed: bool = True, num_epochs: int = 10, tokens_per_step: int | None = None
) -> Setup:
    """Epochs of 17 examples, four a step: the last of an epoch's five steps has one example."""
    return Setup(
        method,
        micro_batch_size=2,
        gradient_accumulation_steps=2 // num_processes(),
        num_processes=num_processes(),
        packed=packed,
        num_examples=17,
        num_epochs=num_epochs,
        learning_rate=1e-3,
        tokens_per_step=tokens_per_step,
    )


def _train(
    model_folder: Path,
    folder: Path,
    method: MethodConfig,
    *,
    packed: bool = True,
    loss: str = CHUNKED,
    unsupervised: bool = False,
    idle: bool = False,
    num_epochs: int = 2,
    tokens_per_step: int | None = None,
) -> dict[str, Any]:
    setup = _setup(method, packed=packed, num_epochs=num_epochs, tokens_per_step=tokens_per_step)
    parts, recorder = make_parts(model_folder, setup), Recorder()
    set_loss(parts.model, loss)
    if unsupervised:
        _take_supervision(parts)
    added = _add_idle(parts) if idle else {}
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
        "num_supervised": [_num_supervised(parts, step) for step in range(state.global_step)],
        "has_token": [_has_token(parts, step) for step in range(state.global_step)],
        "added": {name: parameter.tolist() for name, parameter in added.items()},
    }


def _take_supervision(parts: TrainParts) -> None:
    """Leave one example in six with a supervised token, so that some shares of steps have none."""
    table = cast(Examples, parts.table)
    for index in range(len(table)):
        if index % 6:
            table.labels(index)[:] = -100
            table.num_supervised_tokens[index] = 0


def _add_idle(parts: TrainParts) -> dict[str, torch.nn.Parameter]:
    """Train a parameter that never gets a gradient too, and one that gets it from one token alone."""
    embeddings = cast(torch.nn.Embedding, cast(Any, parts.model).get_input_embeddings())
    added = {
        "never": torch.nn.Parameter(torch.ones(2)),
        "of_token": torch.nn.Parameter(torch.ones(embeddings.embedding_dim)),
    }
    parts.optimizer.add_param_group({"params": list(added.values()), "weight_decay": 0.5})

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        places = inputs[0] == TOKEN
        return output + places[..., None] * added["of_token"] if bool(places.any()) else output

    embeddings.register_forward_hook(add)
    return added


def _has_token(parts: TrainParts, step: int) -> bool:
    """Whether this process's share of a step has the token of `_add_idle`."""
    shares = parts.plan.step(step, rank()).micro_batches
    return any(TOKEN in parts.table.input_ids(index) for share in shares for index in share)


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


def go_on(model_folder: Path, checkpoint: Path) -> dict[str, Any]:
    """The steps after a checkpoint that another number of processes has saved."""
    settings = _setup(LORA)
    size, accumulation = divide(4, num_processes(), settings.micro_batch_size)
    parts = make_parts(model_folder, replace(settings, micro_batch_size=size, gradient_accumulation_steps=accumulation))
    recorder = Recorder()
    train(parts, load_checkpoint(checkpoint, parts), [recorder])
    return {"steps": recorder.steps}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
