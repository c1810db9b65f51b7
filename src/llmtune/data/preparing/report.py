"""The account of prepared data: where every row went, and what a person should know of the rest.

`report.json` holds `digest`, `files` (sha256), `sources`, `rows`, `splits`, `duplicates`, `overlap`, `outliers`,
`personal_data`, `bad_records`, `warnings` and `too_few_test`. In each source and in total, rows in = rows kept + rows
dropped by reason.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.config.data import DataConfig
from llmtune.data.cleaning.outliers import Measured, describe_outlier
from llmtune.data.cleaning.personal_data import KINDS
from llmtune.data.deciding.decisions import DROPPED, SPLITS, Decisions
from llmtune.data.preparing.encode import Lost, WrittenSplit
from llmtune.data.preparing.scan import Scan
from llmtune.data.preparing.verified import digest_files
from llmtune.data.reading.sources import Source
from llmtune.data.shaping.shapes import why_shape
from llmtune.data.token_table import TokenTable
from llmtune.runs.manifest import read_sealed, write_sealed

REPORT = "report.json"
KEPT = "kept.npy"
"""int8 [N]: the split of each row that holds an example, in the sources' order; -1 where it was left out."""
TRAIN_ROWS = "train.rows.npy"
"""int64 [M]: of each stored training example, the row that it is made of, counted as in `KEPT`."""
LOSS_OUTLIER = "the base model's loss stands out"
"""Why a row is left out of training once its loss is known."""
TEST_CLUSTERS = "test.clusters.npy"
"""int64 [M]: of each stored test example, a row of the cluster that it belongs to, counted as in `KEPT`."""
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
    lost: Lost
    """Rows that gave no example once they were tokenised."""
    orders: Mapping[str, np.ndarray]
    """Stored examples of each split, in the order in which they count."""
    warnings: Sequence[str]
    too_few_test: bool
    """Whether the test set, as it was written, is too small for any claim."""

    @property
    def split(self) -> np.ndarray:
        """int8 [N]: where each row ended."""
        split = self.decisions.split.copy()
        split[self.lost.rows] = DROPPED
        return split


def write_report(folder: Path, account: Account) -> None:
    """Write `report.json` beside the tables, and which rows were kept."""
    split = account.split
    np.save(folder / KEPT, split, allow_pickle=False)
    np.save(folder / TRAIN_ROWS, account.tables["train"].rows, allow_pickle=False)
    clusters = account.decisions.clusters[account.tables["test"].rows].astype(np.int64)
    np.save(folder / TEST_CLUSTERS, clusters, allow_pickle=False)
    sources = [_source(account, number, split) for number in range(len(account.sources))]
    tables = [f"{name}{ending}" for name in SPLITS for ending in (".arrow", ".order.npy")]
    files = [*tables, KEPT, TRAIN_ROWS, TEST_CLUSTERS]
    report = {
        "digest": _digest(account),
        "files": digest_files(folder, files),
        "sources": sources,
        "rows": _total(sources),
        "splits": {name: _split(folder, name, account) for name in SPLITS},
        "duplicates": _duplicates(account),
        "overlap": _overlap(account),
        "outliers": _outliers(account),
        "personal_data": _personal_data(account),
        "bad_records": _bad_records(account),
        "warnings": list(account.warnings),
        "too_few_test": account.too_few_test,
    }
    write_sealed(folder / REPORT, report)


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    return read_sealed(folder / REPORT)


def without_rows(report: Mapping[str, Any], rows: np.ndarray, reason: str) -> dict[str, Any]:
    """The account with some training rows left out after all; in each source, rows in = kept + dropped still holds.

    Args:
        report: the account before.
        rows: int64 [K]: which rows, counted over all sources.
        reason: why.
    """
    ends = np.cumsum([source["num_read"] for source in report["sources"]])
    counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(ends))
    sources = [_moved(source, int(count), reason) for source, count in zip(report["sources"], counts, strict=True)]
    return {**report, "sources": sources, "rows": _total(sources)}


def table_figures(table: TokenTable, rows: np.ndarray) -> dict[str, Any]:
    """What can be counted in a table of N examples.

    Args:
        table: the examples.
        rows: int64 [N]: the row that each of them is made of.
    """
    num_tokens, num_supervised = int(table.num_tokens.sum()), int(table.num_supervised_tokens.sum())
    return {
        "num_rows": len(np.unique(rows)),
        "num_examples": len(table),
        "num_tokens": num_tokens,
        "num_supervised_tokens": num_supervised,
        "supervised_share": num_supervised / num_tokens if num_tokens else 0.0,
        "num_supervised_bytes": int(table.num_supervised_bytes.sum()),
        "mean_tokens": num_tokens / len(table) if len(table) else 0.0,
        "longest_tokens": int(table.num_tokens.max()) if len(table) else 0,
        "num_repeated": len(table) - len(np.unique(table.order)),
        "tokens_sha256": table.tokens_digest(),
        "content_sha256": table.content_digest(),
    }


def _source(account: Account, number: int, split: np.ndarray) -> dict[str, Any]:
    """Where each row of a source went."""
    source, scan = account.sources[number], account.scan.sources[number]
    mine = account.scan.columns.source == number
    dropped = Counter(scan.dropped) + Counter(account.decisions.num_dropped(mine))
    dropped += account.lost.by_reason(mine)
    kept = {name: int(np.count_nonzero(mine & (split == place))) for place, name in enumerate(SPLITS)}
    assert scan.num_rows == sum(kept.values()) + dropped.total(), (source.name, scan.num_rows, kept, dropped)
    return {
        "name": source.name,
        "role": "eval" if account.is_eval[number] else "train",
        **source.origin,
        "digest": source.digest,
        "weight": source.weight,
        "rows": scan.num_rows,
        "num_read": int(np.count_nonzero(mine)),
        "kept": kept,
        "dropped": dict(dropped),
        "shapes": dict(scan.shapes),
        "why_shape": why_shape(scan.read_columns, source.rows),
        "unread_columns": sorted(name.encode("utf-8", "backslashreplace").decode() for name in scan.unread_columns),
    }


def _moved(source: Mapping[str, Any], count: int, reason: str) -> dict[str, Any]:
    """A source of which so many training rows were left out later."""
    if not count:
        return dict(source)
    kept = source["kept"] | {"train": source["kept"]["train"] - count}
    dropped = source["dropped"] | {reason: source["dropped"].get(reason, 0) + count}
    return {**source, "kept": kept, "dropped": dropped}


def _total(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dropped = sum((Counter(source["dropped"]) for source in sources), Counter[str]())
    kept = {name: sum(source["kept"][name] for source in sources) for name in SPLITS}
    return {"in": sum(source["rows"] for source in sources), "kept": kept, "dropped": dict(dropped)}


def _split(folder: Path, name: str, account: Account) -> dict[str, Any]:
    table = TokenTable(folder / f"{name}.arrow", folder / f"{name}.order.npy")
    written, counts = account.tables[name], account.tables[name].counts
    return {
        **table_figures(table, written.rows[table.order]),
        "longest_uncut_tokens": int(written.lengths.max()) if len(written.lengths) else 0,
        "num_truncated": counts["truncated"],
        "num_cut_tokens": counts["cut_tokens"],
        "num_windows": counts["windows"],
        "num_by_turn": counts["by_turn"],
        "num_thinking_dropped": counts["thinking_dropped"],
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
    train = {number for number, is_eval in enumerate(account.is_eval) if not is_eval}
    medians = {number: float(np.median(columns.num_words[columns.source == number])) for number in train}
    return {
        kind: {
            "count": len(rows),
            "listed": [
                f"{scan.where(row)}: {describe_outlier(kind, measured, row, medians[int(columns.source[row])])}"
                for row in rows[:_MOST_LISTED]
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
    by_reason = account.scan.bad + account.lost.bad
    listed = [*account.scan.listed_bad, *account.lost.listed_bad]
    return {"count": by_reason.total(), "by_reason": dict(by_reason), "listed": listed[:_MOST_LISTED]}


def _digest(account: Account) -> str:
    """Hex sha256 of every token and label in the order in which they count, whatever Arrow's version."""
    digest = hashlib.sha256()
    for name in SPLITS:
        digest.update(f"{name} {len(account.orders[name])}\n".encode())
        digest.update(account.tables[name].digests[account.orders[name]].tobytes())
    return digest.hexdigest()
