"""Real training parts around a tiny model, and what is compared about a run."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from llmtune.config.method import FullConfig, LoraConfig, MethodConfig, QloraConfig
from llmtune.config.model import ModelConfig
from llmtune.data.plan import PlanSettings, StepPlan
from llmtune.distributed import rank
from llmtune.evaluation.perplexity import LossSettings, evaluate_loss
from llmtune.methods.registry import make_method
from llmtune.models.attention import VARLEN, VARLEN_KERNEL, set_attention
from llmtune.models.decoding import choose_decoder
from llmtune.models.load import LoadSettings
from llmtune.models.precision import Precision
from llmtune.models.source import locate_model
from llmtune.runs.layout import RunFolder
from llmtune.runs.metrics_log import MetricsLog
from llmtune.tracking.null import NullTracker
from llmtune.training.callbacks.checkpointing import CheckpointCallback, CheckpointSettings
from llmtune.training.callbacks.metrics import MetricsCallback
from llmtune.training.callbacks.validation import ValidationCallback, ValidationSettings
from llmtune.training.checkpoint import load_checkpoint
from llmtune.training.loop import train
from llmtune.training.optimizer import make_optimizer
from llmtune.training.parts import Callback, LoopSettings, StepResult, TrainParts, TrainState
from llmtune.training.scaler import make_scaler
from llmtune.training.schedule import ScheduleSettings

MAX_LENGTH = 40
CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
LORA_DROPOUT = LoraConfig(rank=4, alpha=8.0, dropout=0.2)
QLORA_DROPOUT = QloraConfig(rank=4, alpha=8.0, dropout=0.2)
FULL = FullConfig()


class Examples:
    """A table of random examples in memory: 4 to 40 tokens, about half of them supervised; stands for a TokenTable.

    Args:
        count: how many.
        seed: of their lengths and tokens.
    """

    def __init__(self, count: int, seed: int = 7) -> None:
        generator = np.random.default_rng(seed)
        self.taken: list[int] = []
        lengths = generator.integers(4, MAX_LENGTH + 1, count)
        self._ids = [generator.integers(3, 100, length).astype(np.int32) for length in lengths]
        self._labels = [ids.copy() for ids in self._ids]
        for labels in self._labels:
            labels[: generator.integers(1, len(labels))] = -100
        self.num_tokens = lengths.astype(np.int64)
        self.num_supervised_tokens = np.array([int((labels[1:] != -100).sum()) for labels in self._labels])
        self.num_supervised_bytes = self.num_supervised_tokens

    def __len__(self) -> int:
        return len(self._ids)

    def input_ids(self, index: int) -> np.ndarray:
        self.taken.append(index)
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
    tokens_per_step: int | None = None
    """Tokens that steps are filled with; None is steps of examples."""
    loss_scale: float | None = None
    """Where a loss scaler begins, with gradients that overflow where fp16 does; None is none of both."""
    master_dtype: torch.dtype = torch.float32
    """Of what trains; with bf16, products are in bf16 too."""
    precision: Literal["bf16", "fp32"] = "fp32"
    own_decoder: bool = False
    """Whether packed rows take the model's own forward pass, and not llmtune's decoder where that can be."""
    device: str = "cpu"


def make_parts(model_folder: Path, setup: Setup) -> TrainParts:
    """Everything that `train` needs."""
    device = torch.device(setup.device)
    name = "bf16" if setup.master_dtype == torch.bfloat16 else setup.precision
    precision = Precision(name, device.type, "for the test")
    source = locate_model(ModelConfig(name="tiny", source="folder", path=str(model_folder)), Path("unused"))
    method = make_method(setup.method, master_dtype=setup.master_dtype)
    base = method.load(source, LoadSettings(compute_dtype=precision.compute_dtype, device=device))
    model = method.make_trainable(base, setup.seed)
    if setup.packed:
        has_kernel = device.type == "cuda" and precision.name == "bf16"
        set_attention(model, VARLEN_KERNEL if has_kernel else VARLEN)
        choose_decoder(model, "transformers" if setup.own_decoder else "auto", precision, packed=True)
    table = Examples(setup.num_examples)
    plan_settings = PlanSettings(
        seed=setup.seed,
        micro_batch_size=setup.micro_batch_size,
        gradient_accumulation_steps=setup.gradient_accumulation_steps,
        num_processes=setup.num_processes,
        packing=setup.packed,
        max_seq_len=MAX_LENGTH,
        tokens_per_step=setup.tokens_per_step,
    )
    plan = StepPlan(table.num_tokens, table.num_supervised_tokens, plan_settings)
    total_steps = plan.count_steps(setup.num_epochs)
    schedule = ScheduleSettings("cosine", setup.learning_rate, warmup_steps=2, total_steps=total_steps)
    scaler = None
    if setup.loss_scale is not None:
        scaler = make_scaler(device, init_scale=setup.loss_scale)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: gradient.half().float())
    return TrainParts(
        model=model,
        method=method,
        optimizer=make_optimizer(model, setup.optimizer, setup.learning_rate, 0.01),
        plan=plan,
        table=table,
        precision=precision,
        device=device,
        settings=LoopSettings(setup.seed, schedule, max_grad_norm=1.0, packed=setup.packed, pad_token_id=2),
        scaler=scaler,
    )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over all weights, trainable and frozen, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Recorder:
    """A callback that keeps each step's loss and gradient norm by step, and which examples it took."""

    steps: dict[int, tuple[float, float]] = field(default_factory=dict)
    examples: dict[int, list[int]] = field(default_factory=dict)

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        self._plan = copy.deepcopy(parts.plan)  # the run's own is in use by the thread that makes the next step

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        self.steps[state.global_step] = (result.loss, result.grad_norm)
        planned, table = self._plan.step(state.global_step - 1, rank()), cast(Examples, parts.table)
        count = sum(map(len, planned.micro_batches))  # what was taken beyond them is the next step's
        self.examples[state.global_step] = table.taken[:count]
        del table.taken[:count]

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None: ...


@dataclass
class Outcome:
    """What a run came to; equal for a run that was stopped and one that wasn't."""

    weights: str
    """`weights_digest` at the end."""
    state: dict[str, Any]
    """The state at the end, but for wall time."""
    steps: dict[int, tuple[float, float]]
    """Loss and gradient norm of the steps that were made here."""
    examples: dict[int, list[int]]
    """Examples of the steps that were made here, in the order in which they were taken."""

    def after(self, step: int) -> "Outcome":
        """What a run that goes on after `step` must come to."""
        steps = {number: values for number, values in self.steps.items() if number > step}
        examples = {number: taken for number, taken in self.examples.items() if number > step}
        return Outcome(self.weights, self.state, steps, examples)


def train_to_the_end(
    parts: TrainParts,
    state: TrainState,
    folder: Path,
    *,
    keep: int = 1000,
    every_steps: int = 1,
    more: Sequence[Callback] = (),
) -> Outcome:
    """Train, with a validation on other examples after every step, and checkpoints in `folder`."""
    held_out, recorder = Examples(6, seed=8), Recorder()
    how = LossSettings(
        batch_tokens=120,
        packed=parts.settings.packed,
        pad_token_id=2,
        precision=parts.precision,
        device=parts.device,
    )
    log = MetricsLog(RunFolder(folder).metrics_file)
    saving = CheckpointCallback(RunFolder(folder), CheckpointSettings(every_steps, None, keep))
    callbacks: Sequence[Callback] = [
        MetricsCallback(log, NullTracker(), log_every_steps=1),
        ValidationCallback(
            lambda model: evaluate_loss(model, cast(Any, held_out), how).loss,
            ValidationSettings(1, patience=None),
            log,
            NullTracker(),
        ),
        recorder,
        saving,
        *more,
    ]
    with saving:
        train(parts, state, callbacks)
    kept = {key: value for key, value in asdict(state).items() if key != "seconds"}
    return Outcome(weights_digest(parts.model), kept, recorder.steps, recorder.examples)


def resume(model_folder: Path, setup: Setup, checkpoint: Path, folder: Path) -> Outcome:
    """Go on from a checkpoint in fresh parts; what is saved on the way goes to `folder`."""
    parts = make_parts(model_folder, setup)
    return train_to_the_end(parts, load_checkpoint(checkpoint, parts), folder)
