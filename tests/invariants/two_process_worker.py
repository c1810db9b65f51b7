"""One of several gloo processes: trains the tiny model three times and writes what came out. Started by a test.

Arguments: model folder, folder for results.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from tiny_training import FULL, LORA, Recorder, Setup, make_parts, weights_digest

from llmtune.config.method import MethodConfig
from llmtune.distributed import num_processes, rank
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.null import NullTracker
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.loop import train
from llmtune.training.parts import TrainState


def main(model_folder: Path, results: Path) -> None:
    """Train by both methods, and once without the exchange of gradients."""
    torch.set_num_threads(1)
    meeting = f"file://{results / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank(), world_size=num_processes(), timeout=timedelta(seconds=60)
    )
    outcome = {
        "lora": _train(model_folder, results / "lora", LORA),
        "full": _train(model_folder, results / "full", FULL),
    }
    with patch("llmtune.training.loop.sum_gradients"):
        outcome["no exchange"] = _train(model_folder, results / "no-exchange", LORA)
    (results / f"rank{rank()}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


def _train(model_folder: Path, folder: Path, method: MethodConfig) -> dict[str, Any]:
    """Two epochs of 17 examples, four a step: the last step of an epoch has one example."""
    setup = Setup(
        method,
        micro_batch_size=2,
        gradient_accumulation_steps=2 // num_processes(),
        num_processes=num_processes(),
        num_examples=17,
        learning_rate=1e-3,
    )
    parts, recorder = make_parts(model_folder, setup), Recorder()
    validation = ValidationCallback(
        lambda model: 1.0 + rank(), ValidationSettings(4, None), MetricsLog(folder / "metrics.jsonl"), NullTracker()
    )
    checkpoints = CheckpointCallback(RunFolder(folder), CheckpointSettings(4, None, keep=9))
    state = train(parts, TrainState(), [recorder, validation, checkpoints])
    return {
        "steps": recorder.steps,
        "weights": weights_digest(parts.model),
        "best": state.best_validation_loss,
        "num_micro_batches": [len(parts.plan.step(step, rank()).micro_batches) for step in range(5)],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
