"""Measures what saving beside the training gains over saving while training waits; prints the ratio of their times.

Usage: python scripts/measure_saving.py [--method lora|full] [--hidden 512] [--layers 8] [--steps 24] [--every 2]
    [--rounds 5] [--device cpu|cuda] [--folder DIR]

A random Llama of that size trains on random tokens, in turn with the one and with the other, from the same start; both
write the same checkpoints, every one compared by its digests. The folder decides the disk. Time is that of the training
loop, the last checkpoint and the final link included; a round's first two runs warm up and don't count.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from random_tokens import RandomTokens
from transformers import LlamaConfig, LlamaForCausalLM

from llmtune.config.method import FullConfig, LoraConfig
from llmtune.config.model import ModelConfig
from llmtune.data.plan import PlanSettings, StepPlan
from llmtune.methods.registry import make_method
from llmtune.models.load import LoadSettings
from llmtune.models.precision import Precision
from llmtune.models.source import locate_model
from llmtune.runs.layout import RunFolder
from llmtune.training.callbacks import checkpointing
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.checkpoint import list_checkpoints
from llmtune.training.loop import train
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import LoopSettings, TrainParts, TrainState
from llmtune.training.schedule import ScheduleSettings

TOKENS = 64
VOCABULARY = 2048
MICRO_BATCH = 4


def make_parts(base: Path, arguments: argparse.Namespace) -> TrainParts:
    """Fresh parts on the model in `base`."""
    device = torch.device(arguments.device)
    source = locate_model(ModelConfig(name="random", source="folder", path=str(base)), base / "cache")
    method = make_method(LoraConfig() if arguments.method == "lora" else FullConfig())
    loaded = method.load(source, LoadSettings(compute_dtype=torch.float32, device=device))
    model = method.make_trainable(loaded, seed=1)
    table = RandomTokens(MICRO_BATCH * arguments.steps, TOKENS, VOCABULARY)
    settings = PlanSettings(
        seed=1,
        micro_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=1,
        num_processes=1,
        packing=False,
        max_seq_len=TOKENS,
    )
    return TrainParts(
        model=model,
        method=method,
        optimizer=make_optimizer(model, "adamw", 1e-4, 0.01),
        plan=StepPlan(table.num_tokens, table.num_supervised_tokens, settings),
        table=cast(Any, table),
        precision=Precision("fp32", device.type, "for the measurement"),
        device=device,
        settings=LoopSettings(1, ScheduleSettings("constant", 1e-4, 0, arguments.steps), 1.0, False, 0),
    )


def timed(base: Path, folder: Path, arguments: argparse.Namespace, *, beside: bool) -> tuple[float, dict[str, Any]]:
    """Train once; seconds, and the digests of every file of every checkpoint."""
    parts = make_parts(base, arguments)
    saving = CheckpointCallback(RunFolder(folder), CheckpointSettings(arguments.every, None, keep=arguments.steps))
    with patch.object(checkpointing, "copy_fits", lambda size: beside):
        started = time.perf_counter()
        with saving:
            train(parts, TrainState(), [saving])
        seconds = time.perf_counter() - started
    found = list_checkpoints(folder / "checkpoints")
    digests = {path.name: json.loads((path / "checkpoint.json").read_text())["files"] for path in found}
    for files in digests.values():
        del files["trainer_state.json"]  # holds the time that the steps took
        files.pop("adapter_config.json", None)  # lists the adapted layers in no order
    return seconds, digests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--method", choices=("lora", "full"), default="full")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path)
    for name, default in (("hidden", 512), ("layers", 8), ("steps", 24), ("every", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    hidden = arguments.hidden
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    times: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        base = Path(scratch) / "base"
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(base)
        for number in range(arguments.rounds + 1):
            written = []
            for beside in (True, False) if number % 2 else (False, True):
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    seconds, digests = timed(base, Path(folder), arguments, beside=beside)
                written.append(digests)
                if number:
                    times[beside].append(seconds)
            assert written[0] == written[1], "the checkpoints differ"
    ratios = [one / other for one, other in zip(times[True], times[False], strict=True)]
    saves = -(-arguments.steps // arguments.every)
    print(f"{arguments.method}, {arguments.steps} steps, {saves} checkpoints, {arguments.device}:")
    for words, beside in (("beside the training", True), ("while it waits", False)):
        print(f"  saved {words}: median {statistics.median(times[beside]):.2f} s of {len(ratios)}")
    print(f"  ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
