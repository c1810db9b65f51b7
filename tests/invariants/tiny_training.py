"""Real training parts around a tiny model, and what is compared about a run."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llmtune.config.method import FullConfig, LoraConfig, MethodConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.data.plan import PlanSettings, StepPlan
from llmtune.methods.registry import make_method
from llmtune.models.attention import VARLEN, set_attention
from llmtune.models.load import LoadSettings
from llmtune.models.precision import Precision
from llmtune.models.source import locate_model
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import LoopSettings, StepResult, TrainParts, TrainState
from llmtune.training.schedule import ScheduleSettings, count_steps

MAX_LENGTH = 40
CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
LORA_DROPOUT = LoraConfig(rank=4, alpha=8.0, dropout=0.2)
QLORA_DROPOUT = QloraConfig(rank=4, alpha=8.0, dropout=0.2)
FULL = FullConfig()


class Examples:
    """A table of random examples in memory: 4 to 40 tokens, about half of them supervised; stands for a TokenTable."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(7)
        lengths = generator.integers(4, MAX_LENGTH + 1, count)
        self._ids = [generator.integers(3, 100, length).astype(np.int32) for length in lengths]
        self._labels = [ids.copy() for ids in self._ids]
        for labels in self._labels:
            labels[: generator.integers(1, len(labels))] = -100
        self.num_tokens = lengths.astype(np.int64)
        self.num_supervised_tokens = np.array([int((labels[1:] != -100).sum()) for labels in self._labels])

    def __len__(self) -> int:
        return len(self._ids)

    def input_ids(self, index: int) -> np.ndarray:
        return self._ids[index]

    def labels(self, index: int) -> np.ndarray:
        return self._labels[index]

    def example_id(self, index: int) -> str:
        return f"example-{index}"

    def source(self, index: int) -> str:
        return f"file.jsonl:{index + 1}"


@dataclass(frozen=True)
class Setup:
    """What differs between the runs that are compared."""

    method: MethodConfig = LORA
    micro_batch_size: int = 2
    gradient_accumulation_steps: int = 2
    num_processes: int = 1
    packed: bool = True
    num_examples: int = 18
    num_epochs: int = 2
    learning_rate: float = 1e-2
    seed: int = 1
    optimizer: str = "adamw"


def make_parts(model_folder: Path, setup: Setup) -> TrainParts:
    """Everything that `train` needs, the model in fp32 on the CPU."""
    source = locate_model(ModelConfig(name="tiny", source="folder", path=str(model_folder)), Path("unused"))
    method = make_method(setup.method)
    base = method.load(source, LoadSettings(compute_dtype=torch.float32, device=CPU))
    model = method.make_trainable(base, setup.seed)
    if setup.packed:
        set_attention(model, VARLEN)
    table = Examples(setup.num_examples)
    plan_settings = PlanSettings(
        seed=setup.seed,
        micro_batch_size=setup.micro_batch_size,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        num_processes=setup.num_processes,
        packing=setup.packed,
        max_seq_len=MAX_LENGTH,
    )
    plan = StepPlan(table.num_tokens, table.num_supervised_tokens, plan_settings)
    total_steps = count_steps(plan.steps_per_epoch, setup.num_epochs, None)
    schedule = ScheduleSettings("cosine", setup.learning_rate, warmup_steps=2, total_steps=total_steps)
    return TrainParts(
        model=model,
        method=method,
        optimizer=make_optimizer(model, setup.optimizer, setup.learning_rate, 0.01),
        plan=plan,
        table=table,
        precision=Precision("fp32", "cpu", "for the test"),
        device=CPU,
        settings=LoopSettings(setup.seed, schedule, max_grad_norm=1.0, packed=setup.packed, pad_token_id=2),
    )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over all weights, trainable and frozen, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Recorder:
    """A callback that keeps each step's loss and gradient norm by step."""

    steps: dict[int, tuple[float, float]] = field(default_factory=dict)

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None: ...

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        self.steps[state.global_step] = (result.loss, result.grad_norm)

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None: ...
