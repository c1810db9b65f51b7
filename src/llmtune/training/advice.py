"""What the numbers of a run say, with the key to try."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.config.method import AdapterConfig, MethodConfig, UntrainedConfig
from llmtune.config.train import TrainConfig

LossPoint = tuple[int, float]
"""Steps done and nats per supervised token."""

FEWEST_STEPS = 30
"""Below it warm-up and the first gradients decide, and a curve shows the order of the examples more than learning."""
_FEWEST_AVERAGED = 5
"""Training losses that are averaged, or a tenth of the run's: one is of a handful of examples and says little."""
_ROSE = 0.01
"""Rise over the best validation loss: on the same examples each time, it moves by less where nothing is wrong."""
_MOVED = 0.01
"""Fall between first and last validation below which the loss counts as flat."""
_PARTED = 0.05
"""Fall of the training loss, as a share of the first validation loss, that validation should have shared."""
_DIVERGED = 0.25
"""Rise of the training loss over its lowest, as a share of its first: no change of examples does that."""
_SURE = 4.0
"""Standard errors by which two averages differ where chance is no likely reason."""
_NO_BETTER = 0.001
"""Share by which a test loss must be below the base model's to count as lower."""
_MOST_EPOCHS = 10
"""More passes than this aren't suggested: few examples are then learnt by heart."""
_USUAL_RATES = {"full": (1e-7, 1e-4), "lora": (1e-6, 1e-2), "qlora": (1e-6, 1e-2)}
"""Peak rates at and beyond which AdamW hardly moves a model, or breaks it: 50 to 200 times off the method's own, or 5
times above it where every weight moves."""
_ADAMW = ("adamw", "adamw_8bit", "paged_adamw_8bit")
"""Optimizers whose rates compare; other ones' usual rates are others."""
_HIGHEST_DROPOUT = 0.3


@dataclass(frozen=True, kw_only=True)
class AskedFor:
    """What was asked of a run, as far as advice depends on it."""

    train: TrainConfig
    method: MethodConfig
    total_steps: int
    """Steps that the run was to have."""
    steps_per_epoch: int
    """Of the first epoch, where they differ."""
    max_seq_len: int = 1
    """Tokens that a step must have room for at least."""


@dataclass(frozen=True)
class _Curves:
    train: Sequence[LossPoint]
    validation: Sequence[LossPoint]

    @property
    def num_averaged(self) -> int:
        return max(_FEWEST_AVERAGED, len(self.train) // 10)

    @property
    def sure(self) -> float:
        """Difference of two averaged training losses that chance hardly makes."""
        if len(self.train) < 2:
            return math.inf
        jumps = [abs(later[1] - earlier[1]) for earlier, later in zip(self.train, self.train[1:], strict=False)]
        noise = 1.4826 * statistics.median(jumps) / math.sqrt(2)  # of a loss, from the jumps between neighbours
        return _SURE * noise * math.sqrt(2 / self.num_averaged)

    def train_loss_at(self, step: int) -> float:
        """The mean training loss of the last few steps up to `step`, or of the first few."""
        done = max(self.num_averaged, sum(at <= step for at, _ in self.train))
        return statistics.fmean([loss for _, loss in self.train[:done]][-self.num_averaged :])

    def averages(self) -> list[float]:
        """Means of consecutive stretches of the training losses, the last one at the end."""
        losses, size = [loss for _, loss in self.train], self.num_averaged
        start = len(losses) % size
        return [statistics.fmean(losses[at : at + size]) for at in range(start, len(losses), size)]


def advice(train_losses: Sequence[LossPoint], validation_losses: Sequence[LossPoint], asked: AskedFor) -> list[str]:
    """Sentences on what a finished training shows and what to try next.

    Args:
        train_losses: each step's training loss.
        validation_losses: each validation's loss, at the step after which it was taken.
        asked: what was asked of the run.

    Returns:
        One sentence a finding; none for a run that went as it should.
    """
    if not train_losses:
        return []
    curves, steps = _Curves(train_losses, validation_losses), train_losses[-1][0]
    diverged = _diverged(curves, asked)
    if diverged is not None:
        return [diverged]
    if steps < asked.total_steps and validation_losses:
        return [_stopped_early(curves, asked)]
    found = few_updates(asked)
    if len(validation_losses) >= 2:
        found += _rose(curves, asked) or ([] if found else _stood_still(curves, asked))
    return found


def few_updates(asked: AskedFor) -> list[str]:
    """One sentence where a run has too few weight updates to judge by, with what makes them more; else none."""
    train, steps = asked.train, asked.total_steps
    if steps >= FEWEST_STEPS:
        return []
    updates = "one weight update" if steps == 1 else f"{steps} weight updates"
    found = f"Only {updates}, too few to judge by (below {FEWEST_STEPS})."
    epochs, cures = math.ceil(FEWEST_STEPS / asked.steps_per_epoch), []
    key, before, after = _smaller_step(asked)
    if train.max_steps is not None and steps < train.num_epochs * asked.steps_per_epoch:
        return [f"{found} Try train.max_steps={FEWEST_STEPS}."]
    if before > after and (steps * before >= FEWEST_STEPS * after or epochs > _MOST_EPOCHS):
        cures.append(f"train.{key}={after}")
    if epochs <= _MOST_EPOCHS:
        cures.append(f"train.num_epochs={epochs}")
    return [f"{found} Try {_listed([*cures, 'more examples'])}."]


def _smaller_step(asked: AskedFor) -> tuple[str, int, int]:
    """The key that makes more steps of the same examples, with its value and a lower one."""
    train = asked.train
    if train.tokens_per_step is not None:
        full = max(0, asked.total_steps - train.num_epochs)  # but for each epoch's last one
        after = max(asked.max_seq_len, train.tokens_per_step * full // FEWEST_STEPS)
        return "tokens_per_step", train.tokens_per_step, after
    key = "gradient_accumulation_steps" if train.gradient_accumulation_steps > 1 else "micro_batch_size"
    return key, getattr(train, key), 1


def unusual_rate(asked: AskedFor) -> list[str]:
    """One sentence where the learning rate is far from what the method usually takes; else none."""
    rate, name = asked.train.learning_rate, asked.method.name
    low, high = _USUAL_RATES[name]
    if asked.train.optimizer not in _ADAMW or low < rate < high:
        return []
    effect = "may undo what the base model knows" if rate >= high else "may change next to nothing"
    return [
        f"train.learning_rate={rate:g} is far from {_own_rate(asked.method):g}, which is usual for {name}; it {effect}."
    ]


def rounded_updates(train: TrainConfig) -> list[str]:
    """One sentence where the weights that train are too coarse for small updates; else none."""
    if train.master_dtype == "fp32":
        return []
    return [
        f"train.master_dtype={train.master_dtype}: is for measuring beside tools that train in bf16; an update below "
        "1/512 of its weight is rounded away, which most are at a rate of 2e-5, and fp32 keeps."
    ]


def compared_with_base(
    base_loss: float, tuned_loss: float, train: TrainConfig, method: MethodConfig, *, explained: bool = False
) -> list[str]:
    """One sentence where the tuned model is no better than the base model on the test set; else none.

    Args:
        base_loss: the base model's, nats per supervised token.
        tuned_loss: the tuned model's, on the same examples.
        train: how it was trained.
        method: with what.
        explained: whether the curves have already said what to try.
    """
    if tuned_loss < base_loss * (1 - _NO_BETTER):
        return []
    figures = f"test loss {tuned_loss:.4f}, base model {base_loss:.4f}"
    if tuned_loss <= base_loss * (1 + _NO_BETTER):
        found, rate = f"The tuned model is no better than the base model ({figures}).", _higher_rate(train, method)
    else:
        found, rate = f"The tuned model is worse than the base model ({figures}).", _lower_rate(train, 5)
    return [found if explained else f"{found} Try {_listed([rate, 'examples that are more like the test set'])}."]


def _diverged(curves: _Curves, asked: AskedFor) -> str | None:
    averages = curves.averages()
    if len(averages) < 3:
        return None
    rise = averages[-1] - min(averages)
    if rise < max(_DIVERGED * averages[0], curves.sure):
        return None
    return (
        f"Training diverged: its loss was {averages[0]:.4f} at first, {min(averages):.4f} at its lowest and "
        f"{averages[-1]:.4f} at the end. Try {_listed(_calmer(asked))}."
    )


def _stopped_early(curves: _Curves, asked: AskedFor) -> str:
    steps, (best_step, best) = curves.train[-1][0], _best(curves)
    said = (
        f"Stopped early after step {steps} of {asked.total_steps}: validation loss was lowest after step {best_step} "
        f"({best:.4f}). {_taken(asked, best_step)}"
    )
    if len(curves.validation) == 1 or best_step > curves.validation[0][0]:
        return said
    return f"{said} It never fell after its first validation. Try {_lower_rate(asked.train, 2)} or more examples."


def _rose(curves: _Curves, asked: AskedFor) -> list[str]:
    (best_step, best), (last_step, last) = _best(curves), curves.validation[-1]
    if last <= best * (1 + _ROSE):
        return []
    rise = f"Validation loss rose from {best:.4f} after step {best_step} to {last:.4f} after step {last_step}"
    train_rise = curves.train_loss_at(last_step) - curves.train_loss_at(best_step)
    if train_rise > curves.sure:
        return [f"{rise}, and training loss rose with it. Try {_listed(_calmer(asked))}."]
    cures = [_fewer_epochs(asked, best_step), _lower_rate(asked.train, 2), "more examples"]
    if asked.train.early_stopping_patience is None:
        cures.insert(1, "train.early_stopping_patience=2")
    why = ": the model began to learn the training examples by heart" if train_rise < 0 else ""
    return [f"{rise}{why}. {_taken(asked, best_step)} Try {_listed(cures)}."]


def _stood_still(curves: _Curves, asked: AskedFor) -> list[str]:
    (first_step, first), (last_step, last) = curves.validation[0], curves.validation[-1]
    if last < first * (1 - _MOVED):
        return []
    at_first = curves.train_loss_at(first_step)
    fell_by = at_first - curves.train_loss_at(last_step)
    adapter = asked.method if isinstance(asked.method, AdapterConfig) else None
    if fell_by > max(first * _PARTED, curves.sure):
        cures = ["more examples", _fewer_epochs(asked, first_step)]
        if adapter is not None and adapter.dropout < _HIGHEST_DROPOUT:
            cures.append(f"method.dropout={_HIGHEST_DROPOUT:g}")
        return [
            f"Training loss fell by {fell_by:.4f} after step {first_step} while validation loss stayed at {last:.4f}: "
            f"what is learnt no longer carries over. Try {_listed(cures)}."
        ]
    flat = f"Validation loss stayed flat at {last:.4f} from step {first_step} to {last_step}"
    if curves.train_loss_at(0) - at_first > max(first * _MOVED, curves.sure):
        more = f"method.rank={2 * adapter.rank}" if adapter is not None else _higher_rate(asked.train, asked.method)
        return [
            f"{flat}: what there was to learn was learnt by then. {_fewer_epochs(asked, first_step)} "
            f"reaches the same; to get lower, try {_listed([more, 'more examples'])}."
        ]
    return [
        f"{flat}, and training loss hardly moved. "
        f"Try {_listed([_higher_rate(asked.train, asked.method), 'more train.num_epochs'])}."
    ]


def _best(curves: _Curves) -> LossPoint:
    return min(curves.validation, key=lambda point: point[1])


def _taken(asked: AskedFor, best_step: int) -> str:
    if asked.train.select_checkpoint == "best":
        return f"Evaluated and exported are the weights of step {best_step}."
    return "Evaluated and exported are the last weights; train.select_checkpoint=best takes the better ones."


def _calmer(asked: AskedFor) -> list[str]:
    return [_lower_rate(asked.train, 5), f"train.warmup_steps={max(10, asked.total_steps // 5)}"]


def _fewer_epochs(asked: AskedFor, enough_steps: int) -> str:
    """The key that ends a run soon after so many steps."""
    epochs = math.ceil(enough_steps / asked.steps_per_epoch)
    return f"train.num_epochs={epochs}" if epochs < asked.train.num_epochs else f"train.max_steps={enough_steps}"


def _lower_rate(train: TrainConfig, times: int) -> str:
    return f"train.learning_rate={train.learning_rate / times:.2g}"


def _higher_rate(train: TrainConfig, method: MethodConfig) -> str:
    """The method's own rate where the run's is below half of it, else three times the run's."""
    own = _own_rate(method)
    return f"train.learning_rate={own if train.learning_rate < own / 2 else 3 * train.learning_rate:.2g}"


def _own_rate(method: MethodConfig) -> float:
    assert not isinstance(method, UntrainedConfig), "nothing trains"
    return type(method)().learning_rate


def _listed(cures: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return cures[0] if len(cures) == 1 else f"{', '.join(cures[:-1])} or {cures[-1]}"
