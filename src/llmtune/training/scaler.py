"""Loss scaling for fp16: small gradients would vanish, so the loss is scaled up and the gradients down again."""

import torch

from llmtune.training.parts import TrainParts, TrainState

_MOST_OVERFLOWS = 10
_LOWEST_SCALE = 1.0


def make_scaler(device: torch.device, init_scale: float = 65536.0) -> torch.amp.GradScaler:
    """A loss scaler for fp16 that doubles its scale every 2000 steps and halves it at an overflow."""
    scaler = torch.amp.GradScaler(device.type, init_scale=init_scale)
    scaler.scale(torch.zeros((), device=device))  # makes its scale now: a process may have no micro-batch to scale
    return scaler


def note_overflow(parts: TrainParts, state: TrainState) -> bool:
    """Count a gradient that isn't finite though the loss is.

    Returns:
        Whether it is an overflow of the scaled gradient, whose update is skipped and whose scale is lowered. Without a
        scaler, after 10 in a row or at scale 1 it is a fault instead.
    """
    if parts.scaler is None or parts.scaler.get_scale() <= _LOWEST_SCALE:
        return False
    state.num_overflows += 1
    state.overflows_in_a_row += 1
    return state.overflows_in_a_row < _MOST_OVERFLOWS
