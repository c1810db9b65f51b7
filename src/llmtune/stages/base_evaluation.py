"""The base model's measurement, which the jobs of a sweep share where everything that it depends on is the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from llmtune import distributed
from llmtune.data.preparing.alone import alone
from llmtune.data.token_table import TokenTable
from llmtune.evaluation.perplexity import LossReport, make_report
from llmtune.logs import say, warn
from llmtune.runs.environment import BASE_EVALUATIONS_VARIABLE
from llmtune.runs.file_digest import sha256_of, sha256_of_all
from llmtune.runs.manifest import read_sealed, write_sealed
from llmtune.stages.context import RunContext
from llmtune.stages.measuring import Measured
from llmtune.stages.training_choices import device_name
from llmtune.training.collectives import value_of_first, wait_for_all

_ACCOUNT = "measured.json"
_CHOICES = ("attention", "packed", "loss", "decoder")
"""What training chose that measuring takes over."""
_LONGEST_WAIT = 600.0
_SHARE_OF_LIMIT = 0.25
"""Of a job's time limit, which runs on while it waits for another job that may have stopped for good."""


def shared_base(context: RunContext, num_prompts: int, measure: Callable[[], Measured]) -> Measured | None:
    """What the base model came to: from an earlier job of the sweep, where it measured just the same, else measured.

    Every process takes part, and they agree; without a folder that jobs share it is measured.

    Args:
        context: the run's.
        num_prompts: how many prompts it goes on from.
        measure: measures it.

    Returns:
        None in the other processes than the first, where it was measured before.
    """
    shared = os.environ.get(BASE_EVALUATIONS_VARIABLE)
    if not shared:
        return measure()
    depends_on = _depends_on(context, num_prompts)
    kept = Path(shared) / hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    kept.parent.mkdir(parents=True, exist_ok=True)
    waiting = alone(kept.with_suffix(".lock"), "measuring the base model", _longest_wait(context))
    # The others wait for the first in `value_of_first`; a lock of their own would stand in its way.
    with waiting if distributed.is_first() else nullcontext():
        known = _recalled(context, kept) if distributed.is_first() else None
        if value_of_first(float(known is not None), context.device):
            return known
        measured = measure()
        if distributed.is_first():
            _keep(kept, measured, depends_on)
    wait_for_all()
    return measured


def _longest_wait(context: RunContext) -> float:
    """Seconds to wait for another job's measurement: then the time is better spent on measuring here."""
    limit = context.config.sweep.job_timeout_minutes
    return _LONGEST_WAIT if limit is None else min(_LONGEST_WAIT, _SHARE_OF_LIMIT * limit * 60)


def _depends_on(context: RunContext, num_prompts: int) -> dict[str, Any]:
    """All that decides what comes out, as plain values."""
    config, begun = context.config, context.begun_choices
    model = {key: value for key, value in context.describe_model().items() if key not in ("location", "origin", "name")}
    return {
        "model": model,
        "test": context.data.report["splits"]["test"]["tokens_sha256"],
        "general": context.general and context.general.digest,
        "precision": context.precision.name,
        "device": [str(context.device), device_name(context.device)],
        "num_processes": distributed.num_processes(),
        "num_threads": torch.get_num_threads(),
        "deterministic": config.train.deterministic,
        "choices": {name: begun.get(name) for name in _CHOICES},
        "asked": [config.model.attention, config.model.decoder, config.train.packing, config.data.max_seq_len],
        "batch_tokens": config.evaluate.batch_tokens,
        "answers": [num_prompts, config.evaluate.sample_max_new_tokens],
        "code": [torch.__version__, transformers.__version__, _code_digest()],
    }


@lru_cache
def _code_digest() -> str:
    """Tells apart the versions of llmtune."""
    root = Path(__file__).parents[1]
    return sha256_of_all((file.relative_to(root).as_posix(), file) for file in sorted(root.rglob("*.py")))


def _recalled(context: RunContext, kept: Path) -> Measured | None:
    """What an earlier job kept, whole; None where there is nothing, or it is damaged."""
    if not kept.exists():
        return None
    try:
        account = read_sealed(kept / _ACCOUNT)
        general = context.general
        measured = Measured(
            _report(kept, "test", context.data.test, account),
            None if general is None else _report(kept, "general", general.table, account),
            account["answers"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        warn(f"what the base model came to, in {kept}, is damaged ({error}); it is measured again")
        shutil.rmtree(kept, ignore_errors=True)
        return None
    test = measured.test
    say(f"base model: measured by an earlier job of the sweep, loss {test.loss:.4f}, perplexity {test.perplexity:.2f}")
    return measured


def _report(kept: Path, name: str, table: TokenTable, account: dict[str, Any]) -> LossReport:
    entry, file = account[name], kept / f"{name}.npy"
    if sha256_of(file) != entry["sha256"]:
        raise ValueError(f"{file.name} has another sha256 than when it was written")
    return make_report(table, np.load(file, allow_pickle=False), entry["seconds"])


def _keep(kept: Path, measured: Measured, depends_on: dict[str, Any]) -> None:
    """Write what was measured so that another job finds all of it or nothing; where it can't be kept, it isn't."""
    building = kept.with_name(f".{kept.name}.{os.getpid()}")
    with suppress(OSError):
        building.mkdir()
        account: dict[str, Any] = {"answers": measured.answers, "depends_on": depends_on}
        for name, report in (("test", measured.test), ("general", measured.general)):
            if report is not None:
                np.save(building / f"{name}.npy", report.loss_sums, allow_pickle=False)
                digest = sha256_of(building / f"{name}.npy")
                account[name] = {"seconds": report.seconds, "sha256": digest}
        write_sealed(building / _ACCOUNT, account)
        building.replace(kept)
    shutil.rmtree(building, ignore_errors=True)
