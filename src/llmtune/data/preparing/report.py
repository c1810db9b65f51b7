"""The account of prepared data: where every row went, and what a person should know of the rest.

`report.json` holds `digest`, `files` (sha256), `sources`, `rows`, `splits`, `duplicates`, `overlap`, `outliers`,
`personal_data`, `bad_records`, `warnings` and `too_few_test`. In each source and in total, rows in = rows kept + rows
dropped by reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import DataConfig
from llmtune.data.cleaning.outliers import Measured, describe_outlier
from llmtune.data.cleaning.personal_data import KINDS
from llmtune.data.decisions import DROPPED, SPLITS, Decisions
from llmtune.data.preparing.encode import Dropped, WrittenSplit
from llmtune.data.preparing.scan import Scan
from llmtune.data.reading.digests import sha256_of
from llmtune.data.reading.sources import Source
from llmtune.data.shaping.shapes import why_shape
from llmtune.data.token_table import TokenTable
from llmtune.runs.manifest import write_json

REPORT = "report.json"
KEPT = "kept.npy"
"""int8 [N]: the split of each row that holds an example, in the sources' order; -1 where it was left out."""
_MOST_LISTED = 200
_BINS = 40


@dataclass(frozen=True)
class Account:
    """All that the account is made of."""

    config: DataConfig
    sources: Sequence[Source]
    is_eval: Sequence[bool]
    scan: Scan
    decisions: Decisions
    tables: Mapping[str, WrittenSplit]
    dropped: Sequence[Dropped]
    """Rows that gave no example once they were tokenised."""
    orders: Mapping[str, np.ndarray]
    """Stored examples of each split, in the order in which they count."""

    @property
    def split(self) -> np.ndarray:
        """int8 [N]: where each row ended."""
        split = self.decisions.split.copy()
        split[[row.row for row in self.dropped]] = DROPPED
        return split


def write_report(folder: Path, account: Account) -> None:
    """Write `report.json` beside the tables, and which rows were kept."""
    split = account.split
    np.save(folder / KEPT, split, allow_pickle=False)
    sources = [_source(account, number, split) for number in range(len(account.sources))]
    files = [*(f"{name}{ending}" for name in SPLITS for ending in (".arrow", ".order.npy")), KEPT]
    report = {
        "digest": _digest(account),
        "files": {name: sha256_of(folder / name) for name in files},
        "sources": sources,
        "rows": _total(sources),
        "splits": {name: _split(folder, name, account) for name in SPLITS},
        "duplicates": _duplicates(account),
        "overlap": _overlap(account),
        "outliers": _outliers(account),
        "personal_data": _personal_data(account),
        "bad_records": _bad_records(account),
        "warnings": list(account.decisions.warnings),
        "too_few_test": account.decisions.too_few_test,
    }
    write_json(folder / REPORT, {**report, "own_sha256": _sha256(report)})


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises:
        OSError, ValueError, KeyError: it is missing or damaged.
    """
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    if report.pop("own_sha256") != _sha256(report):
        raise ValueError(f"{REPORT} isn't what was written")
    return report


def _sha256(report: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def _source(account: Account, number: int, split: np.ndarray) -> dict[str, Any]:
    """Where each row of a source went."""
    source, scan = account.sources[number], account.scan.sources[number]
    mine = account.scan.columns.source == number
    dropped = Counter(scan.dropped) + Counter(account.decisions.num_dropped(mine))
    dropped += Counter(row.reason for row in account.dropped if mine[row.row])
    kept = {name: int(np.count_nonzero(mine & (split == place))) for place, name in enumerate(SPLITS)}
    assert scan.num_rows == sum(kept.values()) + dropped.total(), (source.name, scan.num_rows, kept, dropped)
    return {
        "name": source.name,
        "role": "eval" if account.is_eval[number] else "train",
        **source.origin,
        "digest": source.digest,
        "weight": source.weight,
        "rows": scan.num_rows,
        "kept": kept,
        "dropped": dict(dropped),
        "shapes": dict(scan.shapes),
        "why_shape": why_shape(scan.read_columns, source.rows),
        "unread_columns": sorted(name.encode("utf-8", "backslashreplace").decode() for name in scan.unread_columns),
    }


def _total(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dropped = sum((Counter(source["dropped"]) for source in sources), Counter[str]())
    kept = {name: sum(source["kept"][name] for source in sources) for name in SPLITS}
    return {"in": sum(source["rows"] for source in sources), "kept": kept, "dropped": dict(dropped)}


def _split(folder: Path, name: str, account: Account) -> dict[str, Any]:
    table = TokenTable(folder / f"{name}.arrow", folder / f"{name}.order.npy")
    written, counts = account.tables[name], account.tables[name].counts
    num_tokens, num_supervised = int(table.num_tokens.sum()), int(table.num_supervised_tokens.sum())
    return {
        "num_rows": len(np.unique(written.rows)),
        "num_examples": len(table),
        "num_tokens": num_tokens,
        "num_supervised_tokens": num_supervised,
        "supervised_share": num_supervised / num_tokens if num_tokens else 0.0,
        "num_supervised_bytes": int(table.num_supervised_bytes.sum()),
        "mean_tokens": num_tokens / len(table) if len(table) else 0.0,
        "longest_tokens": int(table.num_tokens.max()) if len(table) else 0,
        "longest_uncut_tokens": int(written.lengths.max()) if len(written.lengths) else 0,
        "num_truncated": counts["truncated"],
        "num_cut_tokens": counts["cut_tokens"],
        "num_windows": counts["windows"],
        "num_by_turn": counts["by_turn"],
        "num_thinking_dropped": counts["thinking_dropped"],
        "num_repeated": len(table) - len(np.unique(account.orders[name])),
        "lengths": _lengths(written.lengths),
    }


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Tokens of rows before anything was cut: a histogram, and the lengths that most stay within."""
    if not len(lengths):
        return {"edges": [], "counts": [], "percentiles": {}}
    most = int(np.percentile(lengths, 99.5)) + 1
    counts, edges = np.histogram(np.minimum(lengths, most), bins=min(_BINS, most), range=(0, most))
    shares = {str(share): int(np.percentile(lengths, share)) for share in (50, 90, 95, 99, 100)}
    return {"edges": edges.tolist(), "counts": counts.tolist(), "percentiles": shares}


def _duplicates(account: Account) -> dict[str, Any]:
    found, where = account.decisions.duplicates, account.scan.where
    listed = [
        {"first": where(first), "other": where(other), "likeness": likeness}
        for first, other, likeness in found.listed[:_MOST_LISTED]
    ]
    counts = {"exact": found.exact, "normalised": found.normalised, "near": found.near}
    return {**counts, "num_groups": found.num_groups, "listed": listed}


def _overlap(account: Account) -> dict[str, Any]:
    found, where = account.decisions.overlap, account.scan.where
    listed = [f"{where(row)} and {where(test)}" for row, test in found.listed[:_MOST_LISTED]]
    return {"exact": found.exact, "normalised": found.normalised, "near": found.near, "listed": listed}


def _outliers(account: Account) -> dict[str, Any]:
    scan, columns = account.scan, account.scan.columns
    measured = Measured(columns.num_words, columns.repetition, columns.odd_share)
    median = float(np.median(columns.num_words))
    return {
        kind: {
            "count": len(rows),
            "listed": [
                f"{scan.where(row)}: {describe_outlier(kind, measured, row, median)}" for row in rows[:_MOST_LISTED]
            ],
        }
        for kind, rows in account.decisions.outliers.items()
    }


def _personal_data(account: Account) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for bit, kind in enumerate(KINDS):
        rows = np.flatnonzero(account.scan.columns.personal >> bit & 1)
        if len(rows):
            listed = [account.scan.where(row) for row in rows[:_MOST_LISTED]]
            kinds[kind] = {"count": account.scan.personal[kind], "rows": len(rows), "listed": listed}
    return {"action": account.config.personal_data, "kinds": kinds}


def _bad_records(account: Account) -> dict[str, Any]:
    late = [row for row in account.dropped if row.is_mistake]
    by_reason = account.scan.bad + Counter(row.reason for row in late)
    listed = [*account.scan.listed_bad, *(f"{row.where}: {row.reason}" for row in late)]
    return {"count": by_reason.total(), "by_reason": dict(by_reason), "listed": listed[:_MOST_LISTED]}


def _digest(account: Account) -> str:
    """Hex sha256 of every token and label in the order in which they count, whatever Arrow's version."""
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(f"{name} {len(account.orders[name])}\n".encode())
        digest.update(account.tables[name].digests[account.orders[name]].tobytes())
    return digest.hexdigest()
