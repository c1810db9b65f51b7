"""Which test examples the measured weights may have seen in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.data.preparing.prepared import open_prepared
from llmtune.runs.manifest import Manifest
from llmtune.stages.context import RunContext


def count_test_seen(context: RunContext) -> int | None:
    """How many test examples also stand, word for word, in what the weights were trained or selected on.

    In a run's own split there are none: what stands in the test set was left out of the others. For weights of another
    run it is counted in that run's prepared data; where those are gone, what its training files share with the test
    file is counted.

    Returns:
        None where it can't be known: weights from elsewhere, and a base model.
    """
    if context.config.source_run is None:
        return None if context.config.is_trained_elsewhere else 0
    trained_on = Manifest(context.trained_run.manifest_file)
    if trained_on.section("data").get("digest") == context.data.digest:
        return 0
    try:
        theirs = open_prepared(Path(trained_on.stage("prepare")["folder"]))
    except (OSError, ValueError, KeyError):
        return _shared(context, trained_on.section("data").get("sources", ()))
    seen = np.concatenate([theirs.train.content_hashes(), theirs.validation.content_hashes()])
    return int(np.isin(context.data.test.content_hashes(), seen).sum())


def test_files(sources: Sequence[Mapping[str, Any]]) -> set[str]:
    """Digests of those sources that are the test set alone."""
    return {source["digest"] for source in sources if source["role"] == "eval"}


def _shared(context: RunContext, trained_on: Sequence[Mapping[str, Any]]) -> int | None:
    """What the run's training files share with the test file; what another split holds can't be told from them."""
    if context.config.data.eval_path is None:
        return None
    report = context.data.report
    return 0 if test_files(trained_on) == test_files(report["sources"]) else report["overlap"]["exact"]
