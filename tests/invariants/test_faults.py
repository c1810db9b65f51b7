"""A real model whose loss breaks: the weights of the step before, also in two processes, and a good checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import FULL, LORA_DROPOUT, QLORA_DROPOUT, Recorder, Setup, make_parts, weights_digest

from llmtune.errors import TrainingFault
from llmtune.runs.layout import RunFolder
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.checkpoint import list_checkpoints, load_checkpoint
from llmtune.training.loop import train
from llmtune.training.parts import TrainState

pytestmark = [pytest.mark.fast, pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")]

SETUPS = {
    "lora": Setup(LORA_DROPOUT),
    "full, 8-bit state": Setup(FULL, optimizer="adamw_8bit"),
    "qlora, paged": Setup(QLORA_DROPOUT, optimizer="paged_adamw_8bit"),
    "full, bf16 masters": Setup(FULL, master_dtype=torch.bfloat16),
    "lora, bf16 masters, sgd": Setup(LORA_DROPOUT, optimizer="sgd", master_dtype=torch.bfloat16),
}
WORKER = """
import json, os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_faults import Breaking
from tiny_training import LORA, Setup, make_parts, weights_digest
from llmtune.errors import TrainingFault
from llmtune.training.loop import train
from llmtune.training.parts import TrainState
torch.set_num_threads(1)
rank, results = int(os.environ["RANK"]), Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{results / 'meeting'}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=60))
parts = make_parts(Path(sys.argv[1]), Setup(LORA, gradient_accumulation_steps=1, num_processes=2))
state, before = TrainState(), {}
breaking = Breaking(parts, 3 if rank == 1 else None)
try:
    train(parts, state, [breaking])
    message = "no fault"
except TrainingFault as fault:
    message = str(fault)
outcome = {"message": message, "step": state.global_step, "weights": weights_digest(parts.model),
           "expected": breaking.digests[2],
           "ids": [f"example-{i}" for batch in parts.plan.step(2, 1).micro_batches for i in batch]}
(results / f"rank{rank}.json").write_text(json.dumps(outcome))
dist.destroy_process_group()
"""


class Breaking:
    """Makes the loss of one step, counted from 1, no number, and keeps the weights after each."""

    def __init__(self, parts, step):
        self.digests = {}
        self._step = step
        self._now = 1
        parts.model.get_output_embeddings().register_forward_pre_hook(self._break)

    def _break(self, module, inputs):
        return (inputs[0] * float("nan"), *inputs[1:]) if self._now == self._step else None

    def on_train_start(self, parts, state): ...

    def on_step_end(self, parts, state, result):
        self._now = state.global_step + 1
        self.digests[state.global_step] = weights_digest(parts.model)

    def on_train_end(self, parts, state): ...


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_a_fault_that_is_read_late_leaves_what_a_resume_goes_on_from(tiny_llama, tmp_path, setup):
    straight, recorder = make_parts(tiny_llama, setup), Recorder()
    train(straight, TrainState(), [recorder, Breaking(straight, None)])  # a hook on the head decides how it is computed
    parts, state = make_parts(tiny_llama, setup), TrainState()
    breaking = Breaking(parts, 6)
    saving = CheckpointCallback(RunFolder(tmp_path), CheckpointSettings(4, None, keep=1))
    with pytest.raises(TrainingFault, match=r"^step 6: the loss is nan .*example-\d+ \(file.jsonl:\d+\)"), saving:
        train(parts, state, [breaking, saving])
    assert sorted(breaking.digests) == [1, 2, 3, 4, 5, 6, 7, 8], "told at the save after step 8"
    assert weights_digest(parts.model) == breaking.digests[5] != breaking.digests[4]
    assert state.global_step == 5

    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    resumed, again = make_parts(tiny_llama, setup), Recorder()
    train(resumed, load_checkpoint(checkpoint, resumed), [again, Breaking(resumed, None)])
    assert weights_digest(resumed.model) == weights_digest(straight.model)
    assert again.steps == {step: recorder.steps[step] for step in range(5, 11)}


def test_an_update_that_is_too_large_is_not_saved(tiny_llama, tmp_path):
    """Loss and gradient of the step are finite, and no later step has told yet."""
    parts = make_parts(tiny_llama, Setup(LORA_DROPOUT, learning_rate=1e39))
    saving = CheckpointCallback(RunFolder(tmp_path), CheckpointSettings(1, None, keep=9))
    with (
        pytest.raises(TrainingFault, match=r"^step \d: the update made weights infinite, so they aren't saved"),
        saving,
    ):
        train(parts, TrainState(), [saving])
    for checkpoint in list_checkpoints(tmp_path / "checkpoints"):
        load_checkpoint(checkpoint, parts)
        assert all(bool(weights.isfinite().all()) for weights in parts.trainable), checkpoint


def test_one_process_that_breaks_stops_both_with_one_message(tiny_llama, tmp_path):
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", WORKER, str(tiny_llama), str(here), str(tmp_path)]
    workers = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["message"] == second["message"]
    assert first["message"].startswith("step 3: the loss is nan")
    named = first["message"].split("examples: ")[1].split(". Look")[0]
    assert {part.split(" (")[0] for part in named.split(", ")} == set(first["ids"]), "those of the process that broke"
    assert first["step"] == second["step"] == 2
    assert first["weights"] == second["weights"] == first["expected"] == second["expected"]
