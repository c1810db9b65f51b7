"""What the rows of one group amount to, in sentences: beside full fine-tuning where it is among them, else by loss."""

import math
from collections.abc import Iterator, Mapping, Sequence

from llmtune.comparison.crossed import LEVEL
from llmtune.comparison.defaults import has_default_rate, has_defaults
from llmtune.comparison.outcome import Comparison, Metric, Pair, Row
from llmtune.comparison.ranking import UNREACHABLE, is_gain
from llmtune.comparison.rows import RATE
from llmtune.comparison.statistics import Estimate
from llmtune.comparison.wording import (
    BETTER,
    MOST_NAMES,
    UNITS,
    alone,
    in_brackets,
    in_sentence,
    is_better_than_full,
    listed,
    part,
    quality,
    times,
    weakness,
)

_NOTICEABLE = 0.05
"""Share by which a cost must be below the next to be called the least."""
_ORDER = {"good enough": 0, "undecided": 1, "worse": 2, "no claim": 3}


def sentences_on(rows: Sequence[Row], comparison: Comparison) -> list[str]:
    """What a group's rows say about each other, the most useful first.

    Args:
        rows: the group's, the lowest loss first.
        comparison: that they belong to.
    """
    full = next((row for row in rows if row.standing == "reference"), None)
    others = [row for row in rows if row.standing not in (None, "reference")]
    if full is not None and others:
        found = [
            *_advice(others, full, comparison),
            *_beside_full(others, full, comparison),
            *_among_good(others, comparison),
        ]
    elif len(rows) == 1:
        found = [_single(rows[0], comparison.metric)]
    else:
        found = list(_by_loss(rows, comparison))
    shown = [row for row in rows if row.is_chosen] or list(rows)
    return [*found, *_asides(shown, comparison.metric, is_single=len(rows) == 1)]


def opening(rows: Sequence[Row]) -> str:
    """Under which settings the methods of a group are compared, in a few words; empty for a single method.

    Args:
        rows: the group's.
    """
    of_method: dict[str, list[Row]] = {}
    for row in rows:
        of_method.setdefault(str(row.method), []).append(row)
    numbers = {method: len(found) for method, found in of_method.items()}
    if len(of_method) < 2:
        return ""
    if len(set(numbers.values())) > 1:
        (first, settings), *others = sorted(numbers.items(), key=lambda number: -number[1])
        budgets = [f"{first} {settings} settings", *(f"{method} {number}" for method, number in others)]
        return f"with unequal search ({', '.join(budgets)})"
    number = len(rows) // len(of_method)
    if number > 1 and all(any(row.is_chosen for row in found) for found in of_method.values()):
        return _searched(of_method, number)
    beside = any(key not in ("method.name", *row.group) for row in rows for key in row.values)
    return "at default settings" if not beside and all(map(has_defaults, rows)) else "at the settings given"


def _searched(of_method: Mapping[str, Sequence[Row]], number: int) -> str:
    """What each method's settings were chosen from, and which learning rates were not among it."""
    rates = {method: len({_rate(row) for row in found}) for method, found in of_method.items()}
    what = "learning rate" if set(rates.values()) == {number} else "settings"
    chosen = f"with each method's {what} chosen among {number} on validation"
    fixed = [method for method, tried in rates.items() if tried == 1]
    if not fixed:
        return chosen
    of_them = "" if len(fixed) == len(rates) else f" of {listed(fixed)}"
    defaults = all(has_default_rate(row) for method in fixed for row in of_method[method])
    plural = "s" if len(fixed) > 1 else ""
    kind = f"the default learning rate{plural}" if defaults else f"the learning rate{plural} given"
    return f"{chosen}, at {kind}{of_them}"


def _rate(row: Row) -> float | None:
    return row.runs[0].config.get(RATE)


def _beside_full(others: Sequence[Row], full: Row, comparison: Comparison) -> Iterator[str]:
    unit = UNITS[comparison.metric]
    if (
        full.gain is not None
        and full.gain.basis != "examples"
        and math.isfinite(full.gain.value)
        and not is_gain(full.gain)
    ):
        yield (
            f"{full.name} itself has no clear gain over the base model ({in_brackets(full.gain, unit)}), so it can't "
            "be said what share of it another method keeps."
        )
    says_95 = True
    for row in sorted(others, key=lambda row: _ORDER[str(row.standing)]):
        if row.quality is not None:
            yield _standing(row, full, comparison, says_95=says_95)
            says_95 = False
        elif not _has_one_seed(row):
            yield _without_claim(row, full, comparison)
    on_one_seed = [row for row in others if row.quality is None and _has_one_seed(row)]
    if on_one_seed:
        yield f"On these examples and this seed {_apart(on_one_seed, full, unit)}."
    yield from _costs_without_claim([row for row in others if row.quality is None], full, comparison)


def _advice(others: Sequence[Row], full: Row, comparison: Comparison) -> Iterator[str]:
    """What to take, where something speaks for it; the words before it say under which settings."""
    if (taken := _to_take(others, full, comparison)) is not None:
        yield f"Take {taken.name}."


def _among_good(others: Sequence[Row], comparison: Comparison) -> Iterator[str]:
    """Which of several rows that are good enough costs least, where that is known."""
    good = [row for row in others if row.standing == "good enough"]
    if len(good) > 1 and (cheapest := _cheapest(good, comparison)):
        yield f"Of those that are good enough, {cheapest}."


def _to_take(others: Sequence[Row], full: Row, comparison: Comparison) -> Row | None:
    """The row that a person should take, where nothing speaks for another and the claims aren't weak."""
    if any(row.to_full is None or row.to_full.basis != "seeds" for row in others):
        return None
    if all(row.standing == "worse" for row in others):
        return full
    good = [row for row in others if row.standing == "good enough"]
    if len(good) != 1 or any(row.standing != "worse" for row in others if row is not good[0]):
        return None
    costs = ("peak_memory_gib", "train_seconds") if comparison.times_compare else ("peak_memory_gib",)
    least = [_least([good[0], full], name) for name in costs]
    return good[0] if good[0] in least and full not in least else None


def _has_one_seed(row: Row) -> bool:
    """Whether it stands beside full on a single seed."""
    return row.to_full is not None and row.to_full.basis == "examples" and math.isfinite(row.to_full.value)


def _standing(row: Row, full: Row, comparison: Comparison, *, says_95: bool) -> str:
    assert row.quality is not None
    value, ends = quality(row.quality, comparison.margin)
    kind = "95 % interval " if says_95 and row.quality.low > -math.inf else ""
    shown = value + (" of full's gain" if says_95 else "") + (f" ({kind}{ends})" if ends else "")
    weak = _in_brackets(row.to_full)
    costs = _listed_costs(row, full, comparison)
    shown += f", with {costs}" if costs else ""
    if row.standing == "good enough":
        how = BETTER.replace("full", full.name) if is_better_than_full(row, comparison) else "good enough"
        return f"{row.name} is {how}{weak}: it has {shown}."
    if row.standing == "worse":
        return f"{row.name} is worse{weak}: {shown}."
    # Its own interval may exclude the bound where the correction for several methods keeps the claim back.
    is_apart = not row.quality.low <= 1 - comparison.margin <= row.quality.high
    several = "; not sure enough with several methods judged at once" if is_apart else ""
    how = "would" if row.would_decide == UNREACHABLE else "may"
    return f"{row.name} is undecided{weak}: {shown}{several}; {row.would_decide} {how} decide it."


def _in_brackets(difference: Estimate | None) -> str:
    return f" ({weakness(difference)})" if difference is not None and weakness(difference) else ""


def _without_claim(row: Row, full: Row, comparison: Comparison) -> str:
    """What can be said of a method whose share of full's gain can't be told."""
    diverged = next((one.name for one in (row, full) if not math.isfinite(one.loss.value)), None)
    if diverged is not None:
        return f"{row.name} can't be judged: the loss of {diverged} isn't finite."
    if row.to_full is None:
        return f"{row.name} can't be judged beside {full.name}: the notes say why."
    pair = find_pair(row, full, comparison.pairs)
    if pair is not None and pair.lower is not None:
        return f"{_apart([row], full, UNITS[comparison.metric])}{_in_brackets(pair.difference)}."
    return f"{row.name} and {full.name} can't be told apart{_in_brackets(row.to_full)}."


def _apart(rows: Sequence[Row], full: Row, unit: str) -> str:
    """`lora's loss is 0.003 nats per token above full's, qlora's 0.493 above`."""
    found: list[str] = []
    for row in rows:
        assert row.to_full is not None
        is_below = row.to_full.value < 0
        size, side = alone(row.to_full.scaled(-1 if is_below else 1)), "below" if is_below else "above"
        first = f"{row.name}'s loss is {size} {unit} {side} {full.name}'s"
        found.append(f"{row.name}'s {size} {side}" if found else first)
    return ", ".join(found)


def _costs(row: Row, full: Row, comparison: Comparison) -> dict[str, str]:
    """What a row costs in terms of what full costs; memory and time only where they can be set beside each other."""
    cost, reference = row.cost, full.cost
    found: dict[str, str] = {}
    if cost.num_trainable and reference.num_trainable:
        found["trainable parameters"] = part(cost.num_trainable, reference.num_trainable)
    if (cost.device, cost.num_devices) == (reference.device, reference.num_devices):
        if cost.peak_memory_gib and reference.peak_memory_gib:
            found["memory"] = times(cost.peak_memory_gib, reference.peak_memory_gib)
        if comparison.times_compare and cost.train_seconds and reference.train_seconds:
            found["training time"] = times(cost.train_seconds, reference.train_seconds)
    return found


def _listed_costs(row: Row, full: Row, comparison: Comparison) -> str:
    """`0.90 of the memory and 1.01 times the training time`; the parameters too for what is good enough."""
    known = _costs(row, full, comparison)
    if row.standing != "good enough":
        known.pop("trainable parameters", None)
    found = [f"{amount} {'times' if what == 'training time' else 'of'} the {what}" for what, amount in known.items()]
    return listed(found) if found else ""


def _costs_without_claim(rows: Sequence[Row], full: Row, comparison: Comparison) -> Iterator[str]:
    """What each row takes beside full, of rows of which nothing is claimed; nothing where no cost is known."""
    finite = [row for row in rows if math.isfinite(row.loss.value)]
    found = [f"{row.name} takes {costs}" for row in finite if (costs := _listed_costs(row, full, comparison))]
    if found:
        yield f"Against {full.name}, {'; '.join(found)}."


def _cheapest(rows: Sequence[Row], comparison: Comparison) -> str:
    """Which rows need the least memory and the least time, as the end of a sentence; empty where that isn't known."""
    if len({(row.cost.device, row.cost.num_devices) for row in rows}) > 1:
        return ""
    small = _least(rows, "peak_memory_gib")
    quick = _least(rows, "train_seconds") if comparison.times_compare else None
    if small is not None and quick is not None and small.name == quick.name:
        return f"{small.name} needs the least memory and time"
    parts = [f"{row.name} needs the least {what}" for row, what in ((small, "memory"), (quick, "time")) if row]
    return " and ".join(parts)


def _least(rows: Sequence[Row], name: str) -> Row | None:
    """The row with the lowest cost of a kind; None where that isn't known or another has about as low a one."""
    known = sorted((getattr(row.cost, name), place) for place, row in enumerate(rows) if getattr(row.cost, name))
    if len(known) < len(rows) or len(known) < 2 or known[0][0] > (1 - _NOTICEABLE) * known[1][0]:
        return None
    return rows[known[0][1]]


def _single(row: Row, metric: Metric) -> str:
    gain = row.gain
    if not math.isfinite(row.loss.value):
        return f"{row.name}'s loss isn't finite."
    if gain is None or not math.isfinite(gain.value):
        return f"{row.name} has a loss of {in_sentence(row.loss, UNITS[metric])}; there is nothing to compare it with."
    does, size = ("lowers", gain) if gain.value >= 0 else ("raises", gain.scaled(-1))
    shown = in_sentence(size, UNITS[metric])
    if row.loss.basis != "examples" and gain.p_value > LEVEL:
        return f"{row.name} can't be told apart from the base model: it {does} the loss by {shown}."
    return f"{row.name} {does} the base model's loss by {shown}."


def _by_loss(rows: Sequence[Row], comparison: Comparison) -> Iterator[str]:
    finite = [row for row in rows if math.isfinite(row.loss.value)]
    if not finite:
        yield "No row has a finite loss."
        return
    if not set.intersection(*(set(row.seeds) for row in rows)):
        yield "No row can be chosen: they have no seed in common; run all with the same seeds."
        return
    searched = any(key not in ("method.name", *row.group) for row in rows for key in row.values)
    validated = {row.name: row.validation_loss for row in finite if row.validation_loss is not None}
    by_validation = searched and len(validated) == len(finite)
    best = min(finite, key=lambda row: _finite(validated[row.name])) if by_validation else finite[0]
    loss = in_sentence(best.loss, UNITS[comparison.metric])
    if best.loss.basis == "examples":
        how = "has the lowest validation loss, and a test loss of" if by_validation else "has the lowest loss,"
        yield f"On these examples and this seed {best.name} {how} {loss}."
        return
    chosen = f"{best.name} has the lowest validation loss, and a test loss of {loss}."
    yield chosen if by_validation else f"{best.name} has the lowest loss, {loss}."
    yield from _beside_best(best, [row for row in finite if row is not best], comparison)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _beside_best(best: Row, others: Sequence[Row], comparison: Comparison) -> Iterator[str]:
    pairs = [(row, find_pair(best, row, comparison.pairs)) for row in others]
    known = [(row, pair) for row, pair in pairs if pair is not None]
    above = [(row, pair) for row, pair in known if pair.lower == best.name]
    below = [(row, pair) for row, pair in known if pair.lower == row.name]
    alike = [(row, pair) for row, pair in known if pair.lower is None]
    if above:
        yield f"It is lower than {_named(above)}."
    if below:
        verb = "is" if len(below) == 1 else "are"
        yield f"On the test set {_named(below)} {verb} lower still."
    if alike:
        cheapest = _cheapest([best, *(row for row, _ in alike)], comparison)
        yield f"It can't be told apart from {_named(alike)}{f'; of these {cheapest}' if cheapest else ''}."


def _named(found: Sequence[tuple[Row, Pair]]) -> str:
    """The rows' names, marked where what is said of them is weak."""
    marks = [_in_brackets(pair.difference) for _, pair in found]
    if len(set(marks)) == 1:
        return listed([row.name for row, _ in found], MOST_NAMES) + marks[0]
    return listed([f"{row.name}{mark}" for (row, _), mark in zip(found, marks, strict=True)], MOST_NAMES)


def _asides(rows: Sequence[Row], metric: Metric, *, is_single: bool) -> Iterator[str]:
    """What should be said of rows beside their rank."""
    worse = [row.name for row in rows if row.is_worse_than_base]
    if worse and not is_single:
        yield f"After training {listed(worse, MOST_NAMES)} {_is(worse)} worse than the base model."
    forgetting = [
        f"{row.name}'s by {in_sentence(row.forgetting, says_95=False)}"
        for row in rows
        if row.forgets and row.forgetting is not None
    ]
    if forgetting:
        yield f"Forgotten: on general text the loss rose, {listed(forgetting, MOST_NAMES)} {UNITS[metric]}."


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def find_pair(first: Row, second: Row, pairs: Sequence[Pair]) -> Pair | None:
    """The pair of two rows; None where they weren't compared."""
    wanted = {first.name, second.name}
    return next((pair for pair in pairs if {pair.first, pair.second} == wanted), None)
