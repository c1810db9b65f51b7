"""One of several gloo processes: trains the tiny model, sharded by FSDP2, and writes its losses. Started by a test.

Arguments: model folder, folder for results.
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from tiny_training import CPU, Examples
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from llmtune.data.collate import collate
from llmtune.data.token_table import TokenTable
from llmtune.distributed import num_processes, rank
from llmtune.models.token_loss import WHOLE, set_loss, token_loss_sum

STEPS = 8
EXAMPLES = 4
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    # An eps that counts beside the gradients: without it AdamW can't tell their sums from their means.
    "adamw": partial(torch.optim.AdamW, lr=0.01, eps=1e-2, weight_decay=0.1),
}


def main(model_folder: Path, results: Path) -> None:
    """Train, and write what came out."""
    torch.set_num_threads(1)
    meeting = f"file://{results / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank(), world_size=num_processes(), timeout=timedelta(seconds=60)
    )
    (results / f"rank{rank()}.json").write_text(json.dumps(train_in_every_way(model_folder)))
    dist.barrier()
    dist.destroy_process_group()


def train_in_every_way(model_folder: Path) -> dict[str, dict[str, list[float]]]:
    """By each optimizer, with the gradients' sums over the processes and with the means that FSDP takes.

    In one process the model is whole, and both are the same.
    """
    return {
        f"{name} {'sums' if sums else 'means'}": _train(model_folder, make_optimizer, sums=sums)
        for name, make_optimizer in OPTIMIZERS.items()
        for sums in (True, False)
    }


def _train(
    model_folder: Path, make_optimizer: Callable[..., torch.optim.Optimizer], *, sums: bool
) -> dict[str, list[float]]:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    set_loss(model, WHOLE)
    if num_processes() > 1:
        _shard(model)
    table = Examples(STEPS * EXAMPLES)
    optimizer = make_optimizer(model.parameters())
    losses = []
    for step in range(STEPS):
        indices = range(step * EXAMPLES, (step + 1) * EXAMPLES)
        divisor = int(table.num_supervised_tokens[list(indices)].sum())
        mine = list(indices)[rank() :: num_processes()]
        batch = collate(cast(TokenTable, table), mine, packed=False, pad_token_id=2).to(CPU)
        total = token_loss_sum(model, **batch.inputs)
        assert total is not None
        loss = total / divisor
        (loss * num_processes() if sums else loss).backward()  # FSDP takes the mean over the processes
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if num_processes() > 1:
            dist.all_reduce(mean)
        losses.append(float(mean))
    held = (parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in model.parameters())
    return {"losses": losses, "num_parameters": [sum(part.numel() for part in held)]}


def _shard(model: Any) -> None:
    mesh = init_device_mesh("cpu", (num_processes(),))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
