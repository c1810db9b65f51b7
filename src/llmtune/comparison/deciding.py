"""What it would take to tell a difference from 0 that can't be told yet."""

from dataclasses import dataclass

import numpy as np

from llmtune.comparison.crossed import Components, half_widths

MAX_SEEDS = 100
"""In all; nobody trains more."""
FIRST_SEEDS = 2
"""Further seeds that are asked for where there is one: with three in all the bars hold what they promise."""

_FACTORS = np.concatenate([np.arange(10, 100) / 10, np.arange(10, 100), np.arange(10, 101) * 10.0])
"""1.0 to 1000 in steps of two digits."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What would decide. Both None: nothing is known, or neither seeds nor examples do it alone.

    A forecast that takes the found mean and variances for the true ones. The mean moves too, so the chance that so many
    do decide is about even.
    """

    seeds: int | None = None
    """Further seeds; 0 where it is decided already. With one seed so far always 2, the least from which the variance of
    seeds is known, without a promise that they decide."""
    examples_factor: float | None = None
    """Where seeds don't help: how many times as many test examples, at the same number of seeds; rounded up to two
    digits."""


def find_need(value: float, components: Components, alpha: float) -> Need:
    """The fewest seeds with which the mean `value` would stand apart from 0 at level `alpha`, else the examples."""
    num_seeds, num_clusters = int(components.num_seeds), int(components.num_clusters)
    if num_seeds == 1:
        return Need(seeds=FIRST_SEEDS)
    seeds = np.arange(num_seeds, max(MAX_SEEDS, num_seeds) + 1)
    decided = abs(value) > half_widths(components.with_numbers(seeds, num_clusters), alpha)
    if decided.any():
        return Need(seeds=int(decided.argmax()))
    decided = abs(value) > half_widths(components.with_numbers(num_seeds, num_clusters * _FACTORS), alpha)
    return Need(examples_factor=float(_FACTORS[decided.argmax()])) if decided.any() else Need()
