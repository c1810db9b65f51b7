"""Whether something wants to see or replace a module's forward pass."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether a module's forward or backward pass has hooks, or its forward was replaced on this instance."""
    return "forward" in vars(module) or any(getattr(module, name, None) for name in _HOOKS)
