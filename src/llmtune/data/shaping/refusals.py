"""Many records that can't be read, as one refusal that a person can take in."""

import re
from collections.abc import Mapping, Sequence

from llmtune.data.shaping.outcome import fault_in
from llmtune.errors import DataError

_MOST_SHOWN = 20
_FEWEST_ALIKE = 3
_PROBLEM = re.compile(r"(?P<path>.*?):(?P<line>\d+): (?P<reason>.*)", re.DOTALL)


def refusal(listed: Sequence[str], by_fault: Mapping[str, int], cure: str) -> DataError:
    """The error in which each fault that many records share is shown once.

    Args:
        listed: the first records, as `path:line: reason`.
        by_fault: how many there are of each fault, those that aren't listed counted in.
        cure: what to do about all of them.
    """
    groups: dict[str, list[re.Match[str]]] = {}
    for problem in listed:
        found = _PROBLEM.fullmatch(problem)
        assert found is not None, "a problem is path:line: reason"
        groups.setdefault(fault_in(found["reason"]), []).append(found)
    shown: list[str] = []
    num_alike = 0
    for fault, members in groups.items():
        total = max(len(members), by_fault.get(fault, 0))
        if total < _FEWEST_ALIKE:
            shown += [member.string for member in members]
            continue
        if len(shown) < _MOST_SHOWN:
            shown.append(f"{members[0].string}\n... and {total - 1:,} more like it{_where(members[1:], total - 1)}")
            num_alike += total - 1
    shown = shown[:_MOST_SHOWN]
    num_all = max(sum(by_fault.values()), len(listed))
    return DataError(shown, num_all - num_alike - len(shown), cure if num_all > 1 else "", num_alike)


def _where(others: Sequence[re.Match[str]], total: int) -> str:
    """Where the others are, as far as that is known."""
    if not others:
        return ""
    first, last = others[0], others[-1]
    if len({other["path"] for other in others} | {first["path"]}) > 1:
        return f" (from {first['path']}:{first['line']} on)"
    known = len(others) == total
    return f" (lines {first['line']} to {last['line']})" if known else f" (from line {first['line']} on)"
