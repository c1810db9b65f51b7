"""`train`: how the weights are updated."""

from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd"]
DEFAULT_CYCLES = 2
ScheduleName = Literal["cosine", "linear", "constant", "cosine_with_restarts"]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TrainConfig:
    """One weight update is a step; its examples depend on `seed`, epoch, step and the step's size alone."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate. By default the method's own: 2e-4 for lora and qlora, 2e-5 for full."""
    micro_batch_size: PositiveInt = 4
    """Examples in one forward and backward pass on one device; memory grows with it."""
    gradient_accumulation_steps: PositiveInt = 2
    """Micro-batches that add up to one step: larger global batches without more memory. Ignored with
    `batch_unit=tokens`, where `tokens_per_step` says how large a step is."""
    batch_unit: Literal["examples", "tokens"] = "examples"
    """What a step is a number of: examples, `micro_batch_size` x `gradient_accumulation_steps` x processes; or tokens,
    as many as whole examples make up to `tokens_per_step`."""
    tokens_per_step: PositiveInt | None = None
    """Tokens of a step at most, over all processes, with `batch_unit=tokens`; at least `data.max_seq_len`. Steps are
    filled in the epoch's order, but that an example too long for what is left waits for the next step."""
    packing: bool = True
    """Whether a step's examples are laid end to end, apart from each other, instead of padded. The same step either
    way; padded where the attention implementation can't keep examples apart."""
    num_epochs: PositiveInt = 3
    """Passes over the training split."""
    max_steps: PositiveInt | None = None
    """Steps at most; null is no limit beyond `num_epochs`."""
    warmup_steps: NonNegativeInt | None = None
    """Steps in which the learning rate rises from 0; null is a tenth of all steps, at most 100."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate after warm-up. All but `constant` end at 0."""
    num_cycles: PositiveInt = DEFAULT_CYCLES
    """Cycles of `cosine_with_restarts`."""
    optimizer: OptimizerName = "adamw"
    """The optimizer; the 8-bit ones keep their state in a quarter of the memory."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay on matrices; biases and norms have none. 0 turns it off."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm where it is larger; null turns it off."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of the matrix products: bf16 where the device has it, else fp16 on GPUs, else fp32."""
    master_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which the weights that train, their gradients and AdamW's state are held. `bf16` is only for measuring
    beside tools that train so, and needs bf16 products: most updates at a rate of 2e-5 are rounded away."""
    compile: Literal["auto"] | bool = "auto"
    """Whether forward and backward over a micro-batch are captured once as a CUDA graph and replayed: the same kernels,
    launched at once. For a GPU, llmtune's own decoder and micro-batches of one size (`batch_unit=tokens`); `auto` where
    that is so and what it saves in the run is at least twice what the capture takes."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory, about a third slower."""
    log_every_steps: PositiveInt = 10
    """Steps between two entries in MLflow, and on a GPU between two looks at the figures of steps; the last step always
    has one. The run folder has every step's figures, whatever this is."""
    validate_every_steps: PositiveInt | None = None
    """Steps between two validations; null is five in a run. The last step always validates."""
    early_stopping_patience: PositiveInt | None = None
    """Validations without improvement after which training stops; null never stops early."""
    checkpoint_every_steps: PositiveInt | None = None
    """Steps between two checkpoints; null saves at each validation."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep, beside the best and the final one. With 1, a run whose newest is damaged has at most
    the best to fall back to."""
    select_checkpoint: Literal["best", "final"] = "best"
    """Which checkpoint is evaluated and exported: lowest validation loss, or the last."""
    deterministic: bool = False
    """Whether only deterministic kernels are used; slower on GPUs."""
