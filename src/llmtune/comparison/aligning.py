"""Losses of several models on one test set, laid side by side: the same clusters, the same weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from llmtune.comparison.outcome import Metric
from llmtune.comparison.results import ExampleLosses, RunResult
from llmtune.comparison.statistics import Cells

_LOSSES = ("tuned", "base", "general_tuned", "general_base")


def aligned(results: Sequence[RunResult], metric: Metric) -> list[RunResult]:
    """The results with one division of each set of examples into clusters: the coarsest that one of them knows.

    For bits per byte an example also has one number of bytes. Tokenizers cut a text at other places, and what they
    leave out at its start or end makes them differ by a few.
    """
    known: dict[tuple[str, ...], list[ExampleLosses]] = {}
    for losses in (getattr(run, name) for run in results for name in _LOSSES):
        if losses is not None:
            known.setdefault(losses.example_ids, []).append(losses)
    changes = {ids: _shared(alike, metric) for ids, alike in known.items()}
    return [_with(run, changes) for run in results]


def same_examples(first: ExampleLosses, second: ExampleLosses) -> bool:
    """Whether both are losses on the same supervised tokens of the same examples."""
    return first.example_ids == second.example_ids and np.array_equal(first.num_tokens, second.num_tokens)


def cells_of(losses: Sequence[ExampleLosses], metric: Metric) -> Cells:
    """The losses of S models, or of a model under S seeds, summed in each cluster.

    Args:
        losses: [S], on the same examples.
        metric: nats per token, or bits per byte.
    """
    _, members = np.unique(losses[0].clusters, return_inverse=True)
    in_bits = metric == "bits_per_byte"
    weights = np.bincount(members, losses[0].num_bytes if in_bits else losses[0].num_tokens)
    unit = 1 / math.log(2) if in_bits else 1.0
    sums = np.stack([np.bincount(members, one.loss_sums) * unit for one in losses])
    return Cells(sums=sums, weights=weights)


def _shared(alike: Sequence[ExampleLosses], metric: Metric) -> dict[str, np.ndarray]:
    """What losses on the same examples have in common, by field."""
    clusters = min((losses.clusters for losses in alike), key=lambda clusters: len(np.unique(clusters)))
    if metric == "loss":
        return {"clusters": clusters}
    return {"clusters": clusters, "num_bytes": np.max([losses.num_bytes for losses in alike], axis=0)}


def _with(run: RunResult, changes: Mapping[tuple[str, ...], Mapping[str, np.ndarray]]) -> RunResult:
    known = {name: losses for name in _LOSSES if (losses := getattr(run, name)) is not None}
    return replace(run, **{name: replace(losses, **changes[losses.example_ids]) for name, losses in known.items()})
