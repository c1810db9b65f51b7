"""Whether steps are so small that the device waits for the host between them."""

from collections import deque

from llmtune.data.plan import PlanSettings
from llmtune.distributed import is_first
from llmtune.logs import warn
from llmtune.training.optimizer import waits_for_device
from llmtune.training.parts import StepResult, TrainParts, TrainState
from llmtune.training.throughput import NUM_WARMUP_STEPS

_NUM_STEPS = 20
"""Steps that it is told from, the last of those that count."""
_MANY = 0.5
"""Share of them that is worth a word."""


class IdleCallback:
    """Says once where the device keeps running out of work between steps, and which key to raise.

    Stands last, so it looks right before the next step, and never waits. The process's first steps don't count, nor one
    after which the host waited for the device anyway: to read figures, to validate, to save.

    Nothing is told on a CPU, of an optimizer that waits for the device in each update, and where memory is so short
    that passes are cut.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[bool, int]] = deque(maxlen=_NUM_STEPS)  # whether it was idle; the step's tokens
        self._num_steps = 0
        self._is_done = False

    def on_train_start(self, parts: TrainParts, state: TrainState) -> None:
        """Find out whether there is anything to look at."""
        waits = waits_for_device(parts.optimizer, may_wait=parts.scaler is not None)
        self._is_done = parts.watch.end_of_work is None or waits

    def on_step_end(self, parts: TrainParts, state: TrainState, result: StepResult) -> None:
        """Look whether the device has done what it was given, and tell where it mostly had."""
        self._num_steps += 1
        end, unread = parts.watch.end_of_work, parts.watch.unread
        if self._is_done or end is None or self._num_steps <= NUM_WARMUP_STEPS or not unread:
            return
        self._looks.append((end.is_reached(), result.num_tokens))
        num_idle = sum(is_idle for is_idle, _ in self._looks)
        if len(self._looks) < _NUM_STEPS or num_idle <= _MANY * _NUM_STEPS or parts.splits.all[-1].pieces > 1:
            return
        self._is_done = True
        if is_first():
            tokens = sum(num_tokens for _, num_tokens in self._looks) / _NUM_STEPS
            warn(
                f"the GPU stood idle before {num_idle / _NUM_STEPS:.0%} of the last {_NUM_STEPS} steps: at about "
                f"{tokens:,.0f} tokens a step the host can't give it work fast enough; "
                f"{_to_raise(parts.plan.settings, several_passes=len(unread[-1].micro_batches) > 1)}"
            )

    def on_train_end(self, parts: TrainParts, state: TrainState) -> None:
        """Nothing: what there was to say is said."""


def _to_raise(settings: PlanSettings, *, several_passes: bool) -> str:
    """Which key to raise, and what it changes."""
    size = f"train.micro_batch_size (now {settings.micro_batch_size})"
    accumulation, tokens = settings.gradient_accumulation_steps, settings.tokens_per_step
    if several_passes and tokens is not None:
        return f"raise {size}: the same steps in larger passes"
    if several_passes and accumulation > 1:
        lower = f"lower train.gradient_accumulation_steps (now {accumulation}) by the same factor"
        return f"raise {size} and {lower}: the same steps in larger passes"
    if tokens is not None:
        return f"raise train.tokens_per_step (now {tokens}); steps of more tokens are another run"
    return f"raise {size}; steps of more examples are another run"
