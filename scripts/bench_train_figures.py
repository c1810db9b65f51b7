"""What a benchmark of training comes to: FLOPs of a token, medians, spreads, ratios, agreement of losses, the table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FP32_TOLERANCE = 1e-3
BF16_TOLERANCE = 2e-2


@dataclass
class Row:
    """What one contender did."""

    name: str
    ready: dict[str, Any] | None = None
    """What it told when it had warmed up."""
    turns: list[dict[str, Any]] = field(default_factory=list)
    """What it told after each turn: `seconds`, `steps`, `tokens`, `positions`, `peak_bytes`, `loss`."""
    ratios: list[float] = field(default_factory=list)
    """Of each turn, the speed of ours in that round over its own."""
    error: str | None = None
    """Why it left."""

    @property
    def rates(self) -> list[float]:
        """Real tokens per second of each turn."""
        return [turn["tokens"] / turn["seconds"] for turn in self.turns]


def flops_per_token(shape: Mapping[str, Any], method: str, lengths: np.ndarray) -> float:
    """Multiplications and additions that a real token needs, forward and backward; nothing computed again counts.

    Frozen weights need no gradient of their own: 4 a weight instead of 6. Attention is causal.

    Args:
        shape: a model's `config.json`.
        method: `lora`, `qlora` or `full`.
        lengths: int [N], tokens of each example.
    """
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    queries, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * shape["intermediate_size"]
    weights = layers * layer + hidden * shape["vocab_size"]
    counts = lengths.astype(np.float64)
    attended = float((counts**2).sum() / counts.sum())
    return (6 if method == "full" else 4) * weights + 6 * attended * queries * layers


def groups(names: Sequence[str], resident: int | None, first: str) -> list[list[str]]:
    """Who stays alive at once: all, or `first` with as many others as there is room for, or each alone.

    Args:
        names: the contenders.
        resident: most that are alive at once; None is all.
        first: who is in every group, if there is room for two.
    """
    if resident is None or resident >= len(names):
        return [list(names)]
    if first not in names or resident < 2:
        return [list(names[at : at + resident]) for at in range(0, len(names), resident)]
    others = [name for name in names if name != first]
    room = resident - 1
    return [[first, *others[at : at + room]] for at in range(0, len(others), room)]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round, as far as both have one."""
    return [own / other for own, other in zip(ours, theirs, strict=False)]


def disagreements(rows: Sequence[Row]) -> list[str]:
    """Contenders whose losses on the first batch differ by more than their types allow."""
    known = [(row.name, row.ready) for row in rows if row.ready and row.ready.get("first_loss") is not None]
    found = []
    for at, (name, told) in enumerate(known):
        for other, its in known[at + 1 :]:
            exact = told["precision"] == its["precision"] == "fp32"
            tolerance = FP32_TOLERANCE if exact else BF16_TOLERANCE
            difference = abs(told["first_loss"] - its["first_loss"])
            if not difference <= tolerance:  # also what isn't a number
                found.append(
                    f"LOSSES DISAGREE on the first batch: {name} {told['first_loss']:.4f}, {other} "
                    f"{its['first_loss']:.4f}: {difference:.4f}, at most {tolerance:g}"
                )
    return found


def figures_of(row: Row, flops: float, peak: float) -> dict[str, Any]:
    """A contender's figures as plain values.

    Args:
        row: what it did.
        flops: of a real token.
        peak: measured matrix products of the device, FLOP/s.
    """
    known: dict[str, Any] = {"contender": row.name, "error": row.error, **(row.ready or {}), "turns": row.turns}
    if not row.turns:
        return known
    rate = statistics.median(row.rates)
    return known | {
        "tokens_per_second": rate,
        "least": min(row.rates),
        "most": max(row.rates),
        "step_ms": statistics.median(turn["seconds"] / turn["steps"] * 1e3 for turn in row.turns),
        "peak_gb": max(turn["peak_bytes"] for turn in row.turns) / 2**30,
        "share_of_peak": rate * flops / peak,
        "padding": 1 - sum(turn["tokens"] for turn in row.turns) / sum(turn["positions"] for turn in row.turns),
        "last_loss": row.turns[-1]["loss"],
        "ours_over_it": statistics.median(row.ratios) if row.ratios else None,
    }


HEAD = (
    f"{'':22}{'tokens/s':>10}{'from':>10}{'to':>10}{'ms/step':>10}{'peak GB':>9}{'of peak':>9}{'padding':>9}"
    f"{'start s':>9}{'compile':>9}{'1st loss':>10}{'last':>9}{'ours is':>9}"
)


def line_of(figures: Mapping[str, Any]) -> str:
    """A contender's line of the table; of one that left, why."""
    line = f"{figures['contender']:22}"
    if "tokens_per_second" in figures:
        ratio = figures["ours_over_it"]
        line += (
            f"{figures['tokens_per_second']:10,.0f}{figures['least']:10,.0f}{figures['most']:10,.0f}"
            f"{figures['step_ms']:10,.1f}{figures['peak_gb']:9.2f}{figures['share_of_peak']:9.1%}"
            f"{figures['padding']:9.1%}{figures['start_seconds']:9.1f}{figures['compile_seconds']:9.1f}"
            f"{_number(figures['first_loss']):>10}{_number(figures['last_loss']):>9}"
            + (f"{ratio:8.2f}x" if ratio is not None else f"{'':9}")
        )
    notes = [figures.get("error"), figures.get("first_loss_note")]
    return line + "".join(f"  ({note})" for note in notes if note)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
