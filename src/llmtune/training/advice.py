"""What the curves of a run say, with the key to try."""

from collections.abc import Sequence

LossPoint = tuple[int, float]
"""Steps done and nats per supervised token."""

FEWEST_STEPS = 30
_WINDOW = 5
_ROSE = 0.01
_MOVED = 0.01
_PARTED = 0.05


def advice(train_losses: Sequence[LossPoint], validation_losses: Sequence[LossPoint]) -> list[str]:
    """Sentences on what to try next: too few steps, validation loss that rose, parted from training's or stayed flat.

    Args:
        train_losses: each step's training loss.
        validation_losses: each validation's loss, at the step after which it was taken.

    Returns:
        One sentence a finding; none for a run that went as it should.
    """
    found = []
    if train_losses and train_losses[-1][0] < FEWEST_STEPS:
        found.append(
            f"Only {train_losses[-1][0]} weight updates were made, too few to judge by: raise train.num_epochs, lower "
            "train.gradient_accumulation_steps, or give more examples."
        )
    if len(validation_losses) >= 2:
        found += _curve_advice(train_losses, validation_losses)
    return found


def _curve_advice(train_losses: Sequence[LossPoint], validation_losses: Sequence[LossPoint]) -> list[str]:
    (first_step, first), (last_step, last) = validation_losses[0], validation_losses[-1]
    best_step, best = min(validation_losses, key=lambda point: point[1])
    if last > best * (1 + _ROSE):
        return [
            f"Validation loss rose from {best:.4f} after step {best_step} to {last:.4f} after step {last_step}: the "
            "model learns the training examples by heart. Try fewer train.num_epochs, "
            "train.early_stopping_patience=2 or a lower train.learning_rate."
        ]
    if last < first * (1 - _MOVED):
        return []
    fell_by = _train_loss_at(train_losses, first_step) - _train_loss_at(train_losses, last_step)
    if fell_by > first * _PARTED:
        return [
            f"Training loss fell by {fell_by:.4f} after step {first_step} while validation loss stayed at {last:.4f}: "
            "the two part. Try more examples, a higher method.dropout or fewer train.num_epochs."
        ]
    return [
        f"Validation loss stayed flat at {last:.4f} from step {first_step} to {last_step}. Try a higher "
        "train.learning_rate, or a higher method.rank; where it is as low as it can be, fewer train.num_epochs "
        "reach it too."
    ]


def _train_loss_at(train_losses: Sequence[LossPoint], step: int) -> float:
    """The mean training loss of the last few steps up to `step`; 0 if there are none."""
    recent = [loss for at, loss in train_losses if at <= step][-_WINDOW:]
    return sum(recent) / len(recent) if recent else 0.0
