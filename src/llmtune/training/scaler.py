"""Loss scaling for fp16: small gradients would vanish, so the loss is scaled up and the gradients down again."""

import torch


def make_scaler(device: torch.device, init_scale: float = 65536.0) -> torch.amp.GradScaler:
    """A loss scaler for fp16 that doubles its scale every 2000 steps and halves it at an overflow."""
    scaler = torch.amp.GradScaler(device.type, init_scale=init_scale)
    scaler.scale(torch.zeros((), device=device))  # makes its scale now: a process may have no micro-batch to scale
    return scaler


def scale_on_device(scaler: torch.amp.GradScaler | None, device: torch.device) -> torch.Tensor:
    """The loss scale as a scalar on the device, not waited for; 1 without a scaler."""
    one = torch.ones((), device=device)
    return one if scaler is None else scaler.scale(one)
