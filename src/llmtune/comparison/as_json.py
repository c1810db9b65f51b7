"""A comparison as plain JSON values, with full precision, for programs that go on from it.

- `format_version`: 1; it grows where a field changes its meaning or goes.
- `metric`: what rows are ranked by, `loss` (nats per supervised token) or `bits_per_byte`.
- `axes`: the keys that vary, `seed` left out. `margin`, `price_per_hour`: of the config's `compare`. `times_compare`:
  false where jobs shared a device, so that their times say nothing about each other.
- `is_ranked`: false where runs can't fairly be ranked; `unfair` gives the reasons, then `pairs` is empty.
- `rows`: base models first; fields as in `llmtune.comparison.outcome.Row`. An interval is an object of `value`, `low`
  and `high` (95 %) and `unbounded`, which names the ends that are without limit; an estimate also has
  `standard_error`, `degrees_of_freedom`, `p_value` (two-sided, of 0), `num_seeds`, `num_clusters` and `basis`: `seeds`
  (3 or more), `few seeds` (2, weak), `examples` (1: the seeds' variance is unknown, nothing is claimed) or `no seeds`
  (a base model). `loss`, `gain`, `to_full` and `forgetting` are in the metric's unit, the last in nats per token (bits
  per byte); `quality` is a share of full's gain, 1 is full's own. `cost` holds means over the row's runs: GiB, tokens a
  second over all devices, seconds; `price` is in the currency of `price_per_hour`.
- `rows[].runs`: one a seed: `name` and `folder`, `mlflow_run_id`, `loss` (nats per supervised token), the sums behind
  it, and what the run was made of.
- `pairs`: `difference` is the first's less the second's; `adjusted_p` after Holm; `lower` names the row that can be
  claimed to be better, else null.
- `missing`: jobs that aren't counted.

A number that isn't known, isn't finite or doesn't apply is null.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.comparison.outcome import Comparison, Pair, Row
from llmtune.comparison.reading import UNTRAINED
from llmtune.comparison.results import ExampleLosses, RunCost, RunResult
from llmtune.comparison.statistics import Interval

FORMAT_VERSION = 1


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison as plain JSON values; the module's text tells what each means."""
    return {
        "format_version": FORMAT_VERSION,
        "title": comparison.title,
        "metric": comparison.metric,
        "axes": list(comparison.axes),
        "margin": _plain(comparison.margin),
        "price_per_hour": _plain(comparison.price_per_hour),
        "times_compare": comparison.times_compare,
        "num_test_examples": comparison.num_test_examples,
        "num_test_tokens": comparison.num_test_tokens,
        "num_clusters": comparison.num_clusters,
        "verdict": comparison.verdict,
        "is_ranked": not comparison.unfair,
        "unfair": list(comparison.unfair),
        "notes": list(comparison.notes),
        "rows": [_row(row) for row in comparison.rows],
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "missing": [{"name": run.name, "status": run.status, "error": run.error} for run in comparison.missing],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "is_base": row.is_base,
        "method": row.method,
        "values": _plain(row.values),
        "group": _plain(row.group),
        "seeds": list(row.seeds),
        "loss": _interval(row.loss),
        "perplexity": _interval(row.perplexity),
        "gain": _interval(row.gain),
        "forgetting": _interval(row.forgetting),
        "forgets": row.forgets,
        "is_worse_than_base": row.is_worse_than_base,
        "validation_loss": _plain(row.validation_loss),
        "is_chosen": row.is_chosen,
        "to_full": _interval(row.to_full),
        "quality": _interval(row.quality),
        "standing": row.standing,
        "adjusted_p": _plain(row.adjusted_p),
        "would_decide": row.would_decide,
        "cost": _cost(row.cost),
        "price": _plain(row.price),
        "runs": [_run(run, _measured(run, row)) for run in row.runs],
    }


def _measured(run: RunResult, row: Row) -> ExampleLosses | None:
    """What a row took of a run; a run of an untrained model measured it as its own."""
    return run.tuned if not row.is_base or run.method == UNTRAINED else run.base


def _run(run: RunResult, measured: ExampleLosses | None) -> dict[str, Any]:
    return {
        "name": run.folder.path.name,
        "folder": str(run.folder.path),
        "mlflow_run_id": run.mlflow_run_id,
        "method": run.method,
        "seed": run.seed,
        **_sums(measured),
        "validation_loss": _plain(run.validation_loss),
        "num_test_seen": run.num_test_seen,
        "trained_on": _plain(asdict(run.trained_on)),
        "cost": _cost(run.cost),
        "digests": _plain(run.digests),
        "choices": _plain(run.choices),
        "versions": _plain(run.versions),
    }


def _sums(measured: ExampleLosses | None) -> dict[str, Any]:
    """The loss of a run and what it is made of; null where it wasn't measured."""
    if measured is None:
        return dict.fromkeys(("loss", "loss_sum", "num_tokens", "num_bytes", "num_examples"))
    total, num_tokens = float(measured.loss_sums.sum()), int(measured.num_tokens.sum())
    return {
        "loss": _plain(total / num_tokens) if num_tokens else None,
        "loss_sum": _plain(total),
        "num_tokens": num_tokens,
        "num_bytes": int(measured.num_bytes.sum()),
        "num_examples": len(measured.example_ids),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "difference": _interval(pair.difference),
        "adjusted_p": _plain(pair.adjusted_p),
        "lower": pair.lower,
    }


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    ends = [name for name in ("low", "high") if math.isinf(getattr(interval, name))]
    return {field.name: _plain(getattr(interval, field.name)) for field in fields(interval)} | {"unbounded": ends}


def _cost(cost: RunCost) -> dict[str, Any]:
    return {field.name: _plain(getattr(cost, field.name)) for field in fields(cost)}


def _plain(value: Any) -> Any:
    """The value of JSON's kinds; a number that isn't finite is null, what JSON doesn't know becomes text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path | bytes) else str(getattr(value, "value", value))
