"""Steps that are filled with tokens: an epoch's order is divided so that each step is as full as may be."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

LOOK_AHEAD = 64
"""Examples whose turn comes next among which those that fill a step up are chosen, and so the most steps by which one
is passed over."""
_MAY_GIVE_WAY = 16
"""Examples at the end of a step that others may take the place of."""
_FULL_PARTS = 512
"""A step counts as full where at most one of so many equal parts of it is left."""


def fill_steps(lengths: np.ndarray, tokens_per_step: int) -> list[np.ndarray]:
    """Divide an epoch's examples into steps of at most `tokens_per_step` tokens.

    A step takes the examples whose turn it is; only the last ones are chosen among the next few, so that it is full.
    Those that are passed over keep their turn, and whose turn comes first is always taken. A million examples take a
    second or two of one core, the more the fewer a step holds.

    Args:
        lengths: int64 [N], tokens of each example in the epoch's order; none above `tokens_per_step`.
        tokens_per_step: tokens of a step at most.

    Returns:
        For each step int64 [examples of it], places in `lengths`, rising. Every place stands in one step.
    """
    sizes, turns = lengths.tolist(), _Turns(len(lengths))
    steps: list[np.ndarray] = []
    while step := _next_step(turns, sizes, tokens_per_step):
        steps.append(np.array(step, dtype=np.int64))
    return steps


class _Turns:
    """The places 0 to `count` - 1 in their order, of which some may be taken before their turn."""

    def __init__(self, count: int) -> None:
        self._coming = iter(range(count))
        self._waiting = deque[int]()

    def __iter__(self) -> Iterator[int]:
        """Take the places whose turn it is."""
        while True:
            if not self._waiting:
                self._waiting.extend(islice(self._coming, LOOK_AHEAD))
            if not self._waiting:
                return
            yield self._waiting.popleft()

    def give_back(self, places: Sequence[int]) -> None:
        """Put places, rising, back to the front."""
        self._waiting.extendleft(reversed(places))


def _next_step(turns: _Turns, sizes: Sequence[int], tokens_per_step: int) -> list[int]:
    step: list[int] = []
    room = tokens_per_step
    for place in turns:
        if sizes[place] > room:
            turns.give_back([place])
            break
        step.append(place)
        room -= sizes[place]
    else:
        return step  # all that are left
    if room * _FULL_PARTS <= tokens_per_step:
        return step
    sure = max(1, len(step) - _MAY_GIVE_WAY)
    room += sum(sizes[place] for place in step[sure:])
    turns.give_back(step[sure:])
    return step[:sure] + _fullest(turns, sizes, room, tokens_per_step // _FULL_PARTS)


def _fullest(turns: _Turns, sizes: Sequence[int], room: int, spare: int) -> list[int]:
    """Take the near places that fill a room best: of the fewest first ones that leave at most `spare`, else of all.

    Args:
        turns: gets back what isn't taken.
        sizes: of every place, above 0.
        room: what the taken ones may add up to.
        spare: what may be left.
    """
    within = (1 << room + 1) - 1
    near: list[int] = []
    sums = [1]  # bit s of the number k: whether some of the first k of them add up to s
    for place in islice(turns, LOOK_AHEAD):
        near.append(place)
        sums.append((sums[-1] | sums[-1] << sizes[place]) & within)
        if sums[-1].bit_length() > room - spare:
            break
    total = sums[-1].bit_length() - 1
    taken, passed_over = list[int](), list[int]()
    for place in reversed(near):
        sums.pop()
        if sums[-1] >> total & 1:
            passed_over.append(place)
        else:
            taken.append(place)
            total -= sizes[place]
    turns.give_back(passed_over[::-1])
    return taken[::-1]
