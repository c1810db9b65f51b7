"""One setting's figures: its loss with error bars, what training gained and forgot, what it cost."""

import math
from collections.abc import Sequence

from llmtune.comparison.aligning import cells_of, same_examples
from llmtune.comparison.base_models import BaseModel, BaseModels
from llmtune.comparison.outcome import Metric, Row
from llmtune.comparison.results import RunCost, RunResult
from llmtune.comparison.rows import Setting
from llmtune.comparison.statistics import Cells, Estimate, Interval, estimate

_SEVERAL_DEVICES = "several devices"
_SECONDS_PER_HOUR = 3600


def base_row(base: BaseModel, metric: Metric) -> Row:
    """The row of an untrained model."""
    losses = [base.measured[0]]
    return Row(
        name=base.name,
        values=base.values,
        group=base.values,
        method=None,
        runs=(base.run,),
        loss=estimate(cells_of(losses, metric), has_seeds=False),
        perplexity=_perplexity(estimate(cells_of(losses, "loss"), has_seeds=False)),
    )


def setting_row(setting: Setting, bases: BaseModels, metric: Metric, price_per_hour: float | None) -> Row:
    """The row of a setting, not ranked yet.

    Runs that measured something else than its first are left out of its figures; nothing is ranked then.

    Args:
        setting: the runs.
        bases: the untrained models.
        metric: what it is ranked by.
        price_per_hour: what an hour of the machine costs.
    """
    runs = [run for run in setting.runs if same_examples(run.tuned, setting.runs[0].tuned)]
    tuned = [run.tuned for run in runs]
    base = base_cells(setting, len(runs), bases, metric)
    cost = mean_cost([run.cost for run in setting.runs])
    validation = [run.validation_loss for run in setting.runs if run.validation_loss is not None]
    return Row(
        name=setting.name,
        values=setting.values,
        group=setting.group,
        method=setting.method,
        runs=setting.runs,
        loss=estimate(cells_of(tuned, metric)),
        perplexity=_perplexity(estimate(cells_of(tuned, "loss"))),
        gain=estimate(base - cells_of(tuned, metric)) if base is not None else None,
        forgetting=_forgetting(runs, bases, metric),
        validation_loss=sum(validation) / len(validation) if len(validation) == len(setting.runs) else None,
        cost=cost,
        price=_price(cost.train_seconds, price_per_hour),
    )


def base_cells(setting: Setting, num_seeds: int, bases: BaseModels, metric: Metric) -> Cells | None:
    """The base model's cells beside a setting's, as often as that has seeds; None where it wasn't measured."""
    losses = bases.losses_for(setting.runs[0])
    return cells_of([losses], metric).repeated(num_seeds) if losses is not None else None


def mean_cost(costs: Sequence[RunCost]) -> RunCost:
    """The mean of each figure over the runs that know it."""
    devices = {cost.device for cost in costs if cost.device is not None}
    return RunCost(
        num_trainable=_whole(_mean([cost.num_trainable for cost in costs])),
        num_parameters=_whole(_mean([cost.num_parameters for cost in costs])),
        peak_memory_gib=_mean([cost.peak_memory_gib for cost in costs]),
        tokens_per_second=_mean([cost.tokens_per_second for cost in costs]),
        train_seconds=_mean([cost.train_seconds for cost in costs]),
        device=devices.pop() if len(devices) == 1 else _SEVERAL_DEVICES if devices else None,
        num_devices=max(cost.num_devices for cost in costs),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _price(seconds: float | None, price_per_hour: float | None) -> float | None:
    return None if seconds is None or price_per_hour is None else seconds / _SECONDS_PER_HOUR * price_per_hour


def _perplexity(loss: Estimate) -> Interval:
    return Interval(value=_exp(loss.value), low=_exp(loss.low), high=_exp(loss.high))


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _forgetting(runs: Sequence[RunResult], bases: BaseModels, metric: Metric) -> Estimate | None:
    """How much worse the trained models are on general text; None unless all runs measured the same of it."""
    tuned = [run.general_tuned for run in runs if run.general_tuned is not None]
    base = bases.general_losses_for(runs[0])
    if base is None or len(tuned) < len(runs) or not all(same_examples(one, base) for one in tuned):
        return None
    return estimate(cells_of(tuned, metric) - cells_of([base], metric).repeated(len(tuned)))
