"""Accounts of prepared data that never was, for tests of what is shown of one."""

from typing import Any

LENGTHS = {
    "edges": [0, 100, 200, 300, 400],
    "counts": [10, 150, 35, 5],
    "percentiles": {"50": 150, "90": 250, "95": 280, "99": 350, "100": 380},
}
NOTHING = {"exact": 0, "normalised": 0, "near": 0, "listed": []}


def split(num_rows: int, **changed: Any) -> dict[str, Any]:
    """A split of that many rows of 150 tokens, 60 of them supervised."""
    figures = {
        "num_rows": num_rows,
        "num_examples": num_rows,
        "num_tokens": 150 * num_rows,
        "num_supervised_tokens": 60 * num_rows,
        "supervised_share": 0.4 if num_rows else 0.0,
        "num_supervised_bytes": 200 * num_rows,
        "mean_tokens": 150.0 if num_rows else 0.0,
        "longest_tokens": 380 if num_rows else 0,
        "longest_uncut_tokens": 380 if num_rows else 0,
    }
    counts = ("truncated", "cut_tokens", "windows", "by_turn", "thinking_dropped", "repeated")
    lengths = LENGTHS if num_rows else {"edges": [], "counts": [], "percentiles": {}}
    return figures | {f"num_{name}": 0 for name in counts} | {"lengths": lengths} | changed


def report(**changed: Any) -> dict[str, Any]:
    """The account of clean data: 200 training, 25 validation and 25 test rows of one file."""
    kept = {"train": 200, "validation": 25, "test": 25}
    source = {
        "name": "poems.jsonl",
        "role": "train",
        "kind": "file",
        "path": "/data/poems.jsonl",
        "files": [{"path": "poems.jsonl", "format": "jsonl", "compression": None, "sha256": "ab" * 32, "bytes": 2**20}],
        "licence": "MIT",
        "sha256": "cd" * 32,
        "weight": 1.0,
        "rows": 250,
        "kept": kept,
        "dropped": {},
        "shapes": {"prompt and completion": 250},
        "why_shape": "every row has `prompt` and `completion`",
        "unread_columns": [],
    }
    return {
        "digest": "ef" * 32,
        "files": {},
        "sources": [source],
        "rows": {"in": 250, "kept": kept, "dropped": {}},
        "splits": {name: split(count) for name, count in kept.items()},
        "duplicates": NOTHING | {"num_groups": 0},
        "overlap": NOTHING,
        "outliers": {kind: {"count": 0, "listed": []} for kind in ("length", "repetition", "characters")},
        "personal_data": {"action": "warn", "kinds": {}},
        "bad_records": {"count": 0, "by_reason": {}, "listed": []},
        "too_few_test": False,
        "warnings": [],
    } | changed


def splits(name: str = "train", **changed: Any) -> dict[str, Any]:
    """The splits of clean data, one of them changed."""
    found = report()["splits"]
    return found | {name: found[name] | changed}


def source(**changed: Any) -> list[dict[str, Any]]:
    """The sources of clean data, the one of them changed."""
    return [report()["sources"][0] | changed]
