"""An experiment runner for specialising causal language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmtune.api import FineTuneConfig, LLMFineTuner

__all__ = ["FineTuneConfig", "LLMFineTuner"]


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is asked for."""
    if name in __all__:
        from llmtune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
