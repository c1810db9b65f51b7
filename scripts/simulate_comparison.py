"""Simulates comparisons whose truth is known; prints how often intervals hold it and how often claims are false.

Usage: python scripts/simulate_comparison.py [--trials 2000] [--seed 0]

A trial draws test examples (log-normal numbers of tokens, 115 on average), seeds, and the loss difference of two
methods, true mean 0.02 nats: what a seed shifts it by, what an example does, and what is left. Sizes are near those of
the embedded data. A standard deviation of 0.05 nats between examples moves the mean of 114 of them by 0.006.

- crossed: ours.
- plain df: the same mean squares, Satterthwaite's degrees of freedom as in textbooks, negative components set to 0.
- no jackknife: ours without the correction for examples that hold much of the tokens.
- seeds boot: percentile bootstrap, seeds resampled.
- two-way boot: percentile bootstrap, seeds and examples resampled each by itself (Owen, "The pigeonhole bootstrap",
  2007, doi:10.1214/07-AOAS122).
- examples t, seeds t: a t interval over examples (seeds averaged), or over the seeds' means.

Equal rows are tested with our p-values, which are on the safe side below 5 %, and with those of the interval's t alone.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import stdtr, stdtrit

from llmtune.comparison.crossed import Effects, effects, half_widths, mean_squares, p_values
from llmtune.comparison.statistics import Cells, estimate, holm, ratio

DIFFERENCE = 0.02
GAIN = 0.2
MARGIN = 0.05
RESAMPLES = 300
BLOCK = 100
"""Trials that share their resamples."""

Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Standard deviations in nats per token, and what examples look like."""

    name: str
    seeds: float = 0.005
    examples: float = 0.05
    rest: float = 0.03
    is_heavy: bool = False
    """Examples by Student's t with 3 degrees of freedom instead of a normal distribution."""
    is_skewed: bool = False
    """Examples by a log-normal distribution (skewness 6)."""
    length_spread: float = 0.8
    """Standard deviation of the logarithm of an example's number of tokens."""
    num_clusters: int = 114


SCENARIOS = (
    Scenario(name="no seed effect", seeds=0),
    Scenario(name="nothing but noise", seeds=0, examples=0),
    Scenario(name="seeds as examples"),
    Scenario(name="seeds dominate", seeds=0.03),
    Scenario(name="examples dominate", examples=0.2),
    Scenario(name="noise dominates", rest=0.15),
    Scenario(name="examples t(3)", is_heavy=True),
    Scenario(name="examples skewed", is_skewed=True),
    Scenario(name="lengths spread", length_spread=1.2),
    Scenario(name="20 examples", num_clusters=20),
    Scenario(name="20, lengths spread", num_clusters=20, length_spread=1.2),
    Scenario(name="20, examples skewed", num_clusters=20, is_skewed=True),
    Scenario(name="500 examples", num_clusters=500),
)


def draw_weights(scenario: Scenario, trials: int, numbers: np.random.Generator) -> np.ndarray:
    """[trials, N] numbers of tokens."""
    spread = scenario.length_spread
    lengths = 115 * np.exp(numbers.normal(-(spread**2) / 2, spread, (trials, scenario.num_clusters)))
    return np.maximum(1.0, np.round(lengths))


def draw_losses(scenario: Scenario, num_seeds: int, weights: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    """[trials, S, N] losses in nats per token, their true mean 0."""
    trials, num_clusters = weights.shape
    shape = (trials, 1, num_clusters)
    if scenario.is_heavy:
        examples = numbers.standard_t(3, shape) / np.sqrt(3)
    elif scenario.is_skewed:
        examples = (np.exp(numbers.normal(size=shape)) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1))
    else:
        examples = numbers.normal(size=shape)
    seeds = numbers.normal(size=(trials, num_seeds, 1))
    rest = numbers.normal(size=(trials, num_seeds, num_clusters))
    return scenario.seeds * seeds + scenario.examples * examples + scenario.rest * rest


def around(means: np.ndarray, half: np.ndarray) -> Interval:
    return means - half, means + half


def crossed(sums: np.ndarray, weights: np.ndarray) -> Interval:
    parts = effects(sums, weights)
    return around(parts.mean, half_widths(mean_squares(parts).components()))


def plain_degrees(sums: np.ndarray, weights: np.ndarray) -> Interval:
    parts = effects(sums, weights)
    squares = mean_squares(parts)
    few, many = max(squares.num_seeds - 1, 1), squares.num_clusters - 1
    seeds, clusters = np.maximum(squares.seeds, squares.rest), np.maximum(squares.clusters, squares.rest)
    total = seeds + clusters - squares.rest
    degrees = total**2 / (seeds**2 / few + clusters**2 / many + squares.rest**2 / (few * many))
    return around(parts.mean, stdtrit(degrees, 0.975) * np.sqrt(total / (squares.num_seeds * squares.num_clusters)))


def without_jackknife(sums: np.ndarray, weights: np.ndarray) -> Interval:
    parts = effects(sums, weights)
    total = weights.sum(-1)[:, None]
    scale = weights.shape[1] / total[..., None]
    by_seed = sums.sum(-1) / total
    residuals = (sums - by_seed[..., None] * weights[:, None]) * scale
    clusters = residuals.mean(1)
    plain = Effects(mean=parts.mean, seeds=parts.seeds, clusters=clusters, rest=residuals - clusters[:, None])
    return around(parts.mean, half_widths(mean_squares(plain).components()))


def seeds_bootstrap(sums: np.ndarray, weights: np.ndarray) -> Interval:
    by_seed = sums.sum(-1) / weights.sum(-1)[:, None]
    num_seeds = by_seed.shape[1]
    numbers = np.random.default_rng(0)
    drawn = numbers.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), RESAMPLES) / num_seeds
    low, high = np.percentile(by_seed @ drawn.T, [2.5, 97.5], axis=1)
    return low, high


def two_way_bootstrap(sums: np.ndarray, weights: np.ndarray) -> Interval:
    trials, num_seeds, num_clusters = sums.shape
    numbers = np.random.default_rng(0)
    ends = []
    for start in range(0, trials, BLOCK):
        block = slice(start, start + BLOCK)
        seeds = numbers.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), RESAMPLES) / num_seeds
        clusters = numbers.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), RESAMPLES)
        means = ((sums[block] @ clusters.T) * seeds.T).sum(1) / (weights[block] @ clusters.T)
        ends.append(np.percentile(means, [2.5, 97.5], axis=1))
    low, high = np.concatenate(ends, axis=1)
    return low, high


def examples_t(sums: np.ndarray, weights: np.ndarray) -> Interval:
    return crossed(sums.mean(1, keepdims=True), weights)


def seeds_t(sums: np.ndarray, weights: np.ndarray) -> Interval:
    by_seed = sums.sum(-1) / weights.sum(-1)[:, None]
    num_seeds = by_seed.shape[1]
    error = by_seed.std(1, ddof=1) / np.sqrt(num_seeds)
    return around(by_seed.mean(1), stdtrit(num_seeds - 1, 0.975) * error)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Interval]] = {
    "crossed": crossed,
    "plain df": plain_degrees,
    "no jackknife": without_jackknife,
    "seeds boot": seeds_bootstrap,
    "two-way boot": two_way_bootstrap,
    "examples t": examples_t,
    "seeds t": seeds_t,
}


def coverage_lines(trials: int, numbers: np.random.Generator) -> Iterator[str]:
    """A line a scenario and number of seeds: per cent that hold the truth, and median width."""
    yield f"{'':20} {'seeds':>5}" + "".join(f"{name:>15}" for name in METHODS)
    for scenario in SCENARIOS:
        for num_seeds in (2, 3, 4, 5):
            weights = draw_weights(scenario, trials, numbers)
            sums = (DIFFERENCE + draw_losses(scenario, num_seeds, weights, numbers)) * weights[:, None]
            spread = (sums.sum((1, 2)) / num_seeds / weights.sum(1)).std()
            line = f"{scenario.name:20} {num_seeds:5d}"
            for method in METHODS.values():
                low, high = method(sums, weights)
                held = ((low <= DIFFERENCE) & (high >= DIFFERENCE)).mean()
                line += f"{100 * held:8.1f} ({np.median(high - low) / (2 * 1.96 * spread):4.2f})"
            yield line


def false_winner_lines(scenario: Scenario, trials: int, numbers: np.random.Generator) -> Iterator[str]:
    """A line a number of rows and seeds: per cent of trials that claim any difference among equal rows."""
    for num_rows in (3, 6):
        for num_seeds in (2, 3, 5):
            weights = draw_weights(scenario, trials, numbers)
            rows = [draw_losses(scenario, num_seeds, weights, numbers) * weights[:, None] for _ in range(num_rows)]
            ours, plain = [], []
            for first, second in combinations(rows, 2):
                parts = effects(first - second, weights)
                components = mean_squares(parts).components()
                ours.append(p_values(parts.mean, components))
                statistic = np.abs(parts.mean) / np.sqrt(components.variance)
                plain.append(2 * stdtr(components.degrees_of_freedom, -statistic))
            tables = [adjusted(ours), adjusted(plain), np.stack(ours, axis=1)]
            shares = " ".join(f"{100 * (table.min(1) < 0.05).mean():14.1f}" for table in tables)
            yield f"{num_rows:4d} {num_seeds:5d} {shares}"


def adjusted(p: list[np.ndarray]) -> np.ndarray:
    return np.array([holm(list(trial)) for trial in np.stack(p, axis=1)])


def draw_group(scenario: Scenario, num_seeds: int, share: float, numbers: np.random.Generator) -> list[Cells]:
    """Base, full, and a method that misses `share` of full's gain, on one test set."""
    weights = draw_weights(scenario, 1, numbers)
    base = 2 + draw_losses(replace(scenario, seeds=0, examples=0.5, rest=0), 1, weights, numbers)
    gained = draw_losses(replace(scenario, seeds=0, examples=0.1, rest=0), 1, weights, numbers)
    full = base - GAIN + gained + draw_losses(scenario, num_seeds, weights, numbers)
    method = base - (1 - share) * GAIN + gained + draw_losses(scenario, num_seeds, weights, numbers)
    losses = (np.repeat(base, num_seeds, axis=1), full, method)
    return [Cells(sums=(values * weights[:, None])[0], weights=weights[0]) for values in losses]


def verdict_lines(scenario: Scenario, trials: int, numbers: np.random.Generator) -> Iterator[str]:
    """A line a number of seeds: claims of `good enough` and `worse` exactly at the margin, and quality's interval."""
    for num_seeds in (2, 3, 5):
        good = worse = held = 0
        widths = []
        for _ in range(trials):
            base, full, method = draw_group(scenario, num_seeds, MARGIN, numbers)
            over = estimate(method - full - MARGIN * (base - full))
            good, worse = good + (over.high < 0), worse + (over.low > 0)
            quality = ratio(base - method, base - full)
            held += quality.low <= 1 - MARGIN <= quality.high
            widths.append(quality.high - quality.low)
        shares = " ".join(f"{100 * count / trials:10.1f}" for count in (good, worse, held))
        yield f"{num_seeds:5d} {shares} {np.median(widths):10.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate comparisons whose truth is known.")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    numbers = np.random.default_rng(arguments.seed)
    trials = arguments.trials
    error = 100 * np.sqrt(0.95 * 0.05 / trials)
    print(f"{trials} trials a line; 95.0 % is measured as 95.0 +- {error:.1f} (one standard error)\n")
    print(
        "Per cent of 95 % intervals that hold the truth; median width as a multiple of what the true variance gives:\n"
    )
    print("\n".join(coverage_lines(trials, numbers)))
    for name in ("seeds as examples", "seeds dominate"):
        scenario = next(each for each in SCENARIOS if each.name == name)
        print(f"\nEqual rows ({name}), all pairs tested; per cent of trials with any claim:\n")
        print(f"{'rows':>4} {'seeds':>5} {'Holm':>14} {'Holm, t alone':>14} {'without Holm':>14}")
        print("\n".join(false_winner_lines(scenario, trials, numbers)))
        print(
            f"\nA method exactly at the margin, {MARGIN:.0%} of a gain of {GAIN} nats ({name}); per cent of trials:\n"
        )
        print(f"{'seeds':>5} {'good':>10} {'worse':>10} {'quality in':>10} {'its width':>10}")
        print("\n".join(verdict_lines(scenario, max(trials // 4, 1), numbers)))


if __name__ == "__main__":
    main()
