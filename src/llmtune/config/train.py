"""`train`: how the weights are updated."""

from typing import Literal

from pydantic.dataclasses import dataclass

from llmtune.config.base import STRICT, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "sgd"]
DEFAULT_CYCLES = 2
ScheduleName = Literal["cosine", "linear", "constant", "cosine_with_restarts"]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TrainConfig:
    """One weight update is a step; its examples depend on `seed`, epoch and step alone."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate. By default the method's own: 2e-4 for lora and qlora, 2e-5 for full."""
    micro_batch_size: PositiveInt = 4
    """Examples in one forward and backward pass on one device; memory grows with it."""
    gradient_accumulation_steps: PositiveInt = 2
    """Micro-batches that add up to one step: larger global batches without more memory."""
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
