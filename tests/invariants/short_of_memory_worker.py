"""A process that is short of memory, alone or as one of two. Started by a test.

Arguments: `limited` or `agreeing`, the model folder, and where the two meet.
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from short_memory import ShortMemory
from tiny_training import FULL, LORA, Setup, make_parts

from llmtune.distributed import rank
from llmtune.training.fitting import ExampleTooLarge, fit_memory
from llmtune.training.loop import train_step
from llmtune.training.parts import TrainState
from llmtune.training.splits import Split, Splits

LARGE = Setup(FULL, micro_batch_size=2000, gradient_accumulation_steps=1, packed=False, num_examples=2000)
ROOM = 60 * 2**20
"""Bytes of address space beside what steps without a limit left; a whole micro-batch takes several times as much."""


def limited(model_folder: Path) -> None:
    """Make a step with as much memory as it wants, and again with little."""
    torch.set_num_threads(1)
    whole = train_step(make_parts(model_folder, LARGE), TrainState())
    loss, grad_norm = whole.loss, whole.grad_norm
    parts = make_parts(model_folder, LARGE)
    parts.splits = Splits([Split(1, 256)])
    train_step(parts, TrainState()).read()  # allocates what stays
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    short = make_parts(model_folder, LARGE)
    found = train_step(short, TrainState())
    pieces = short.splits.all[-1].pieces
    assert 1 < pieces < 2000, short.splits.all
    assert abs(found.loss / loss - 1) < 1e-6, (found.loss, loss)
    assert abs(found.grad_norm / grad_norm - 1) < 1e-5, (found.grad_norm, grad_norm)
    print(f"{pieces} pieces: equal")


def agreeing(model_folder: Path, meeting: Path) -> None:
    """Two processes, the second with less memory than the first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank(), world_size=2)
    setup = Setup(LORA, 8, 1, num_processes=2, num_examples=64)
    parts = make_parts(model_folder, setup)
    ShortMemory(parts.model, (None, 80)[rank()])
    fit_memory(parts, 0.0, None)
    told = [f"fits in {parts.splits.all[0].pieces}"]
    parts = make_parts(model_folder, replace(setup, seed=2))
    ShortMemory(parts.model, (None, 3)[rank()])
    try:
        fit_memory(parts, 0.0, None)
    except ExampleTooLarge as error:
        assert (error.__cause__ is None) == (rank() == 0)
        told.append("too large everywhere")
    parts = make_parts(model_folder, setup)
    ShortMemory(parts.model, 80)
    try:
        train_step(parts, TrainState())
    except torch.OutOfMemoryError:
        told.append("not repeated")
    print("; ".join(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    {"limited": limited, "agreeing": agreeing}[sys.argv[1]](*map(Path, sys.argv[2:]))
