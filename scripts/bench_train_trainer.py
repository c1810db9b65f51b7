"""transformers' Trainer in `bench_train.py`, and what all that are built on it share."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench_train_turns import Step, Turns, Wire
from bench_train_work import EXAMPLES_A_STEP, IGNORED, ROW_TOKENS, Examples, Work, identity, read_examples

RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WITHOUT_REENTRY = {"use_reentrant": False}


@dataclass(frozen=True)
class Batches:
    """How a Trainer's batches are made."""

    rows: int
    """Rows of one, which are examples, or packed rows where the Trainer packs them itself."""
    longest: int
    """Tokens of the longest row."""


def batches_of(work: Work, examples: Examples, *, padded: bool, packs_rows: bool, on_gpu: bool) -> Batches:
    """Batches of about the step's tokens.

    Args:
        work: what is trained.
        examples: its examples.
        padded: whether examples are padded; a GPU then has as many as fit if all are of the longest.
        packs_rows: whether the Trainer itself fills rows of the longest example's length.
        on_gpu: where it trains.
    """
    mean, longest = examples.lengths.mean(), int(examples.lengths.max())
    if work.tokens is None:
        return Batches(max(1, round(EXAMPLES_A_STEP * mean / longest)) if packs_rows else EXAMPLES_A_STEP, longest)
    full = packs_rows or (padded and on_gpu)
    return Batches(max(1, round(work.tokens / (ROW_TOKENS if full else mean))), ROW_TOKENS)


class Counting:
    """A collator that remembers what it put into each batch; batches are trained on in the order they are made in."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self.counts: deque[tuple[int, int, list[int]]] = deque()

    def __call__(self, features: Sequence[dict[str, Any]]) -> Any:
        """The batch."""
        ids = [np.asarray(feature["input_ids"], np.int64) for feature in features]
        batch = self._collate(features)
        self.counts.append((sum(map(len, ids)), int(batch["input_ids"].numel()), identity(ids)))
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "_collate":  # a copy that isn't filled yet
            raise AttributeError(name)
        return getattr(self._collate, name)


def begin(work: Work, wire: Wire, precision: str) -> tuple[dict[str, Any], Examples, Turns]:
    """Say that all is imported and wait to be told to build; then the facts to fill in, the examples and the turns."""
    wire.tell("imported")
    wire.wait_for("build")
    facts: dict[str, Any] = {"precision": precision}
    examples = read_examples(work)
    return facts, examples, Turns(wire, work, facts, examples.first)


def train_in_turns(trainer: Any, turns: Turns, facts: dict[str, Any], examples: Examples) -> None:
    """Train with a Trainer, waiting between turns; its loss on the first step's examples of ours goes to `facts`."""
    from transformers import TrainerCallback

    counting = trainer.data_collator = Counting(trainer.data_collator)
    train_step, losses = trainer.training_step, []

    def step(*given: Any, **named: Any) -> Any:
        loss = train_step(*given, **named)
        losses.append(loss.detach())
        return loss

    class InTurns(TrainerCallback):
        """Measures before the first step, counts after each."""

        def on_train_begin(self, *given: Any, **named: Any) -> None:
            """Look at the loss; where the first step has just these examples its own loss says more."""
            with turns.not_counted():
                _note_first_loss(trainer, facts, examples)

        def on_step_end(self, *given: Any, **named: Any) -> None:
            """Count the step; what is in `losses` are the shares of its micro-batches."""
            made = [counting.counts.popleft() for _ in losses]
            shares = list(losses)
            losses.clear()
            tokens, positions = sum(of[0] for of in made), sum(of[1] for of in made)
            turns.step_done(Step(tokens, positions, lambda: float(sum(shares)), [of[2] for of in made]))

    trainer.training_step = step
    trainer.add_callback(InTurns())
    trainer.train()


def _note_first_loss(trainer: Any, facts: dict[str, Any], examples: Examples) -> None:
    """The loss on the first step's examples of ours, by the Trainer's own computation, in its own batches."""
    try:
        facts["first_loss"] = _loss_of(trainer, examples)
    except Exception as error:  # a comparison less, and no contender less
        facts |= {"first_loss": None, "first_loss_note": f"first loss unknown: {type(error).__name__}: {error}"[:200]}


def _loss_of(trainer: Any, examples: Examples) -> float:
    import torch

    size, total, weight = trainer.args.per_device_train_batch_size, 0.0, 0
    trainer.model.train()
    for at in range(0, examples.num_first, size):
        chosen = range(at, min(at + size, examples.num_first))
        features = [{"input_ids": examples.ids[i].tolist(), "labels": examples.labels[i].tolist()} for i in chosen]
        inputs = trainer._prepare_inputs(trainer.data_collator._collate(features))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, inputs)
        supervised = sum(int((examples.labels[i] != IGNORED).sum()) for i in chosen)
        total, weight = total + float(loss) * supervised, weight + supervised
    return total / weight


def training_arguments(kind: Any, work: Work, rows: int, **others: Any) -> Any:
    """What all of them are told."""
    import torch

    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "output_dir": f"{work.folder}/others",
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "max_steps": work.total_steps,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 500,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "train_sampling_strategy": "sequential",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "gradient_checkpointing": work.checkpointing,
        "gradient_checkpointing_kwargs": WITHOUT_REENTRY if work.checkpointing else None,
    }
    return kind(**settings | others)


def load_model(work: Work, *, bf16: bool, lean: bool = False, attention: str = "sdpa") -> Any:
    """The base model by transformers; bf16 weights on a GPU or where `lean`, quantised where the method says so."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 and (on_gpu or lean) else torch.float32}
    if on_gpu:
        options["device_map"] = {"": 0}
    if work.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(work.model, attn_implementation=attention, **options)
    model.config.use_cache = False
    return model


def lora_config() -> Any:
    """PEFT's, as ours."""
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
    )


@dataclass(frozen=True)
class Variant:
    """A way to call a Trainer."""

    bf16: bool = True
    """Whether it computes in bf16; on a CPU on fp32 weights under autocast."""
    packed: bool = False
    """Whether a batch's examples lie end to end."""
    lean: bool = False
    """Whether the weights are bf16 on a CPU too."""


def run_trainer(work: Work, wire: Wire, variant: Variant) -> None:
    """Transformers' Trainer on PEFT's model, as their documentation has it."""
    import torch
    from transformers import Trainer, TrainingArguments

    facts, examples, turns = begin(work, wire, "bf16" if variant.bf16 else "fp32")
    on_gpu = torch.cuda.is_available()
    batches = batches_of(work, examples, padded=not variant.packed, packs_rows=False, on_gpu=on_gpu)
    rows: Any = [
        {"input_ids": ids.tolist(), "labels": labels.tolist()}
        for ids, labels in zip(examples.ids, examples.labels, strict=True)
    ]
    trainer = Trainer(
        model=_trainable(work, variant),
        args=training_arguments(TrainingArguments, work, batches.rows, bf16=variant.bf16),
        train_dataset=rows,
        data_collator=_collator(work, variant),
    )
    train_in_turns(trainer, turns, facts, examples)


def _trainable(work: Work, variant: Variant) -> Any:
    import peft

    model = load_model(work, bf16=variant.bf16, lean=variant.lean)
    if work.method == "full":
        return model
    if work.method == "qlora":
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=work.checkpointing, gradient_checkpointing_kwargs=WITHOUT_REENTRY
        )
    elif work.checkpointing:
        model.enable_input_require_grads()
    return peft.get_peft_model(model, lora_config())


def _collator(work: Work, variant: Variant) -> Any:
    import torch
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithFlattening

    if variant.packed:
        return DataCollatorWithFlattening()  # positions start anew, and no mask: attention stays within an example
    multiple = 8 if torch.cuda.is_available() else None
    return DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(work.model), pad_to_multiple_of=multiple)
