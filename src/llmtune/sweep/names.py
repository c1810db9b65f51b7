"""Jobs' names: the values that differ, short and each its own."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

_LONGEST_VALUE = 40
_SELF_EVIDENT = ("method", "model")
"""Keys whose value says by itself what it is."""
_LONGEST_NAME = 200
_NOT_IN_NAMES = re.compile(r"[\"'`\\\s]+")


def job_names(differences: Sequence[Mapping[str, str]], fallback: Sequence[str]) -> list[str]:
    """A name a job, such as `lora rank=8 seed=1`.

    A method or model is shown by its value alone, another key by its last part where that is enough, a path by its last
    part, a long value by its start; where
    two jobs would be named alike so, all keys and values are whole, and where they still would, `fallback` is added.

    Args:
        differences: for each job the keys and values that aren't the same in all.
        fallback: for each job a text that is its own, which also names a job without differences.
    """
    leaves = Counter(key.rpartition(".")[2] for key in {key: None for job in differences for key in job})
    short = [_name(job, fallback[number], leaves) for number, job in enumerate(differences)]
    if len(set(short)) == len(short):
        return short
    whole = [_name(job, fallback[number], None) for number, job in enumerate(differences)]
    if len(set(whole)) == len(whole):
        return whole
    return [f"{name} {own}" for name, own in zip(short, fallback, strict=True)]


def _name(job: Mapping[str, str], fallback: str, leaves: Mapping[str, int] | None) -> str:
    """A job's name; short where it is known how many keys end in each last part."""
    parts = []
    for key, value in job.items():
        leaf, text = key.rpartition(".")[2], _NOT_IN_NAMES.sub(" ", value).strip()
        if leaves is not None:
            text = text.rstrip("/").rpartition("/")[2] or text
            text = text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
        shown = leaf if leaves is not None and leaves[leaf] == 1 else key
        parts.append(text if leaves is not None and key in _SELF_EVIDENT else f"{shown}={text}")
    return " ".join(filter(None, parts))[:_LONGEST_NAME] or fallback
