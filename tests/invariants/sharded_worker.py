"""One of several gloo processes: trains the tiny model, sharded by FSDP2, and writes its losses. Started by a test.

Arguments: model folder, folder for results. Alone it trains the model whole.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_training import CPU, Examples
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from llmtune.data.collate import collate
from llmtune.distributed import num_processes, rank
from llmtune.models.token_loss import WHOLE, set_loss, token_losses

STEPS = 8
EXAMPLES = 4


def main(model_folder: Path, results: Path) -> None:
    """Train with the gradients' sums over the processes, and once with the means that FSDP takes."""
    torch.set_num_threads(1)
    meeting = f"file://{results / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank(), world_size=num_processes(), timeout=timedelta(seconds=60)
    )
    outcome = {"sums": _train(model_folder, sums=True), "means": _train(model_folder, sums=False)}
    (results / f"rank{rank()}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


def _train(model_folder: Path, *, sums: bool) -> dict[str, list[float]]:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    set_loss(model, WHOLE)
    if num_processes() > 1:
        _shard(model)
    table = Examples(STEPS * EXAMPLES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses, shares = [], []
    for step in range(STEPS):
        indices = range(step * EXAMPLES, (step + 1) * EXAMPLES)
        divisor = int(table.num_supervised_tokens[list(indices)].sum())
        mine = list(indices)[rank() :: num_processes()]
        batch = collate(table, mine, packed=False, pad_token_id=2).to(CPU)
        loss = token_losses(model, **batch.inputs).sum() / divisor
        (loss * num_processes() if sums else loss).backward()  # FSDP takes the mean over the processes
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total))
    shares = [
        parameter.to_local().numel() if sharded(parameter) else parameter.numel() for parameter in model.parameters()
    ]
    return {"losses": losses, "num_parameters": [sum(shares)]}


def sharded(parameter: torch.nn.Parameter) -> bool:
    """Whether this process holds a part of it."""
    return hasattr(parameter, "to_local")


def _shard(model: torch.nn.Module) -> None:
    mesh = init_device_mesh("cpu", (num_processes(),))
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
