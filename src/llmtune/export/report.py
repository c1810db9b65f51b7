"""The figures of an export's check, each with its bound."""

from dataclasses import asdict, dataclass
from typing import Any

from llmtune.errors import ExportCheckFailed


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from the trained model."""

    why: str
    """Where the bounds come from, in a sentence; it stands in the record and the model card."""
    logits: float | None = None
    """Largest logit difference over the largest logit; None only reports it, and the greedy text with it."""
    largest_kl: float | None = None
    """Nats, on any one token."""
    mean_kl: float | None = None
    """Nats, mean over the tokens."""
    loss_rise: float | None = None
    """Nats per supervised token."""


@dataclass(frozen=True)
class Figure:
    """One measured difference between an export and the trained model."""

    name: str
    value: float
    bound: float | None
    """Largest value that passes; None for a figure that is only reported."""
    meaning: str
    """What was measured, unit included."""
    cure: str = ""
    """What to do where it doesn't pass."""

    @property
    def passed(self) -> bool:
        """Whether the value is within its bound; NaN never is."""
        return self.bound is None or self.value <= self.bound


@dataclass(frozen=True)
class ParityReport:
    """What an export's check found."""

    figures: tuple[Figure, ...]
    compared: str
    """Which two models were compared, on what."""
    why: str = ""
    """Where the bounds come from."""

    def require(self, format_name: str) -> None:
        """Raise unless every figure is within its bound.

        Raises:
            ExportCheckFailed: names each check that failed, its figure, its bound and the cure.
        """
        failed = [figure for figure in self.figures if not figure.passed]
        if failed:
            lines = [
                f"{figure.name} ({figure.meaning}) is {figure.value:.3g}, allowed is {figure.bound:.3g}; {figure.cure}"
                for figure in failed
            ]
            raise ExportCheckFailed(
                f"the {format_name} export differs from the trained model and was discarded ({self.compared}):\n"
                + "\n".join(lines)
            )

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        figures = {figure.name: {**asdict(figure), "passed": figure.passed} for figure in self.figures}
        return {"compared": self.compared, "bounds": self.why, "figures": figures}
