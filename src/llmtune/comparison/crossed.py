"""The variance of a token-weighted mean over seeds and examples that are both drawn at random.

Every seed is measured on every example, so the two are crossed: a difference carries what is the seed's, what is the
example's, and what is left. A new seed would bring another first part, a new test set another second, and a bar that
leaves either out is too short (Clark, "The language-as-fixed-effect fallacy", 1973, doi:10.1016/S0022-5371(73)80014-3;
Baayen, Davidson and Bates 2008, doi:10.1016/j.jml.2007.12.005).

Arrays hold any number of experiments in their leading dimensions, so that a simulation of thousands takes seconds.
"""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
"""Intervals are of 1 - this; down to it one t value for the whole variance is good enough."""

_HALVINGS = 50
"""Of the range of exponents: to 1e-12 of a p-value."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What a table of S seeds by N clusters of examples falls apart into; each part is linear in the table's sums."""

    mean: np.ndarray
    """[...]: nats per token, the mean over seeds."""
    seeds: np.ndarray
    """[..., S]: each seed's own mean less `mean`."""
    clusters: np.ndarray
    """[..., N]: each cluster's residual, averaged over seeds."""
    rest: np.ndarray
    """[..., S, N]: what neither a seed nor a cluster has by itself, noise included."""


@dataclass(frozen=True, kw_only=True)
class MeanSquares:
    """The three mean squares of a crossed analysis of variance, or the mean products of two; [...] each."""

    seeds: np.ndarray
    clusters: np.ndarray
    rest: np.ndarray
    num_seeds: int
    num_clusters: int

    def components(self) -> "Components":
        """What seeds, clusters and the rest each add to the mean's variance; a part that comes out negative is 0."""
        cells = self.num_seeds * self.num_clusters
        rest = np.maximum(self.rest, 0)
        return Components(
            seeds=np.maximum(self.seeds - rest, 0) / cells,
            clusters=np.maximum(self.clusters - rest, 0) / cells,
            rest=rest / cells,
            num_seeds=self.num_seeds,
            num_clusters=self.num_clusters,
        )


@dataclass(frozen=True, kw_only=True)
class Components:
    """The parts of a mean's variance, in nats squared; they add up to it."""

    seeds: np.ndarray
    """sigma_seed^2 / S."""
    clusters: np.ndarray
    """sigma_cluster^2 / N."""
    rest: np.ndarray
    """sigma_rest^2 / (S N)."""
    num_seeds: float | np.ndarray
    num_clusters: float | np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Of the mean."""
        return self.seeds + self.clusters + self.rest

    @property
    def degrees_of_freedom(self) -> np.ndarray:
        """Of the variance, after Satterthwaite (1946, doi:10.2307/3002019), on the safe side; 1 to (S - 1) (N - 1).

        His are 1 / sum(share^2 / own degrees of freedom) over the parts, by their shares in the variance. But shares
        are as uncertain as the variance: three seeds that agree by chance look like a small share with many degrees of
        freedom, and intervals hold the truth in 91 to 93 % of cases where seeds weigh 3 to 10 times as much as
        examples. With shares that aren't squared, which gives fewer, they do in 92 to 95 %, and are up to a fifth wider
        there. Parts enter instead of mean squares, so that a part that is 0 leaves nothing behind: else, without a seed
        effect, the few degrees of freedom of seeds would make bars 1.5 (5 seeds) to 6 times (2) as wide as needed.
        """
        few, many = np.maximum(self.num_seeds - 1, 1), np.maximum(self.num_clusters - 1, 1)
        uncertainty = self.seeds / few + self.clusters / many + self.rest / (few * many)
        known = uncertainty > 0
        return np.where(known, self.variance / np.where(known, uncertainty, 1), many)

    def with_numbers(self, num_seeds: float | np.ndarray, num_clusters: float | np.ndarray) -> "Components":
        """What they would be with that many seeds and clusters of the same kind."""
        seeds, clusters = self.num_seeds / num_seeds, self.num_clusters / num_clusters
        return Components(
            seeds=self.seeds * seeds,
            clusters=self.clusters * clusters,
            rest=self.rest * seeds * clusters,
            num_seeds=num_seeds,
            num_clusters=num_clusters,
        )


def effects(sums: np.ndarray, weights: np.ndarray) -> Effects:
    """The parts of a table.

    A mean per token is a ratio of two sums, so its residuals are those of a ratio estimator (Cochran, "Sampling
    Techniques", 1977, chapter 6), taken for each seed by itself. A cluster that holds much of the tokens pulls the mean
    to itself and its residual towards 0, so residuals are divided by the share of tokens outside the cluster: the
    jackknife that leaves one cluster out. With equal weights this changes nothing.

    Args:
        sums: [..., S, N] summed nats.
        weights: [..., N] tokens, at least two of them above 0.
    """
    num_clusters = sums.shape[-1]
    total = weights.sum(-1, keepdims=True)
    leverage = weights / total
    by_seed = sums.sum(-1) / total
    mean = by_seed.mean(-1)
    scale = num_clusters / total * (1 - 1 / num_clusters) / (1 - leverage)
    residuals = (sums - by_seed[..., None] * weights[..., None, :]) * scale[..., None, :]
    clusters = residuals.mean(-2)
    return Effects(
        mean=mean, seeds=by_seed - mean[..., None], clusters=clusters, rest=residuals - clusters[..., None, :]
    )


def mean_squares(first: Effects, second: Effects | None = None) -> MeanSquares:
    """Mean squares of a table's effects; with a second table the mean products, so that those of any sum follow.

    Their expectations with S seeds and N clusters: N sigma_seed^2 + sigma_rest^2, S sigma_cluster^2 + sigma_rest^2,
    sigma_rest^2. With one seed the first and the last are 0 and the clusters' holds the rest too.
    """
    second = first if second is None else second
    num_seeds, num_clusters = first.rest.shape[-2:]
    few, many = max(num_seeds - 1, 1), max(num_clusters - 1, 1)
    return MeanSquares(
        seeds=num_clusters * (first.seeds * second.seeds).sum(-1) / few,
        clusters=num_seeds * (first.clusters * second.clusters).sum(-1) / many,
        rest=(first.rest * second.rest).sum((-2, -1)) / (few * many),
        num_seeds=num_seeds,
        num_clusters=num_clusters,
    )


def squares_of_sum(first: Effects, second: Effects, factors: tuple[np.ndarray, np.ndarray]) -> MeanSquares:
    """Mean squares of `factors[0] * first + factors[1] * second`, for any number of factors: [...] each."""
    own, other, products = mean_squares(first), mean_squares(second), mean_squares(first, second)
    near, far = factors

    def combined(part: str) -> np.ndarray:
        squares = near**2 * getattr(own, part) + far**2 * getattr(other, part)
        return squares + 2 * near * far * getattr(products, part)

    return MeanSquares(
        seeds=combined("seeds"),
        clusters=combined("clusters"),
        rest=combined("rest"),
        num_seeds=own.num_seeds,
        num_clusters=own.num_clusters,
    )


def half_widths(components: Components, alpha: float = LEVEL) -> np.ndarray:
    """How far the two-sided 1 - alpha interval reaches from the mean to either side."""
    from scipy.special import stdtrit

    width = -stdtrit(components.degrees_of_freedom, alpha / 2) * np.sqrt(components.variance)
    return width if alpha >= LEVEL else np.maximum(width, _cautious_half_widths(components, np.asarray(alpha)))


def p_values(means: np.ndarray, components: Components) -> np.ndarray:
    """Two-sided, of a true mean of 0: below alpha just where `half_widths` at alpha doesn't reach to 0.

    Without any variance 1 for a mean of 0, else 0.
    """
    from scipy.special import stdtr

    error = np.sqrt(components.variance)
    certain = error == 0
    statistic = np.abs(means) / np.where(certain, 1, error)
    p = np.where(certain, means == 0, 2 * stdtr(components.degrees_of_freedom, -statistic))
    # Where 5 % already claims nothing there is no tail to look at.
    cautious = np.where((p < LEVEL) & ~certain, _cautious_p_values(means, components), 0)
    return np.where(p < LEVEL, np.clip(cautious, p, np.nextafter(LEVEL, 0)), p)


def _cautious_half_widths(components: Components, alpha: np.ndarray) -> np.ndarray:
    """Half widths that hold at every alpha: each variance times the t value of its own degrees of freedom, squared.

    After Banerjee, "Approximate confidence interval for linear functions of means of k populations when the population
    variances are not equal", Sankhya 22, 1960. Degrees of freedom of the whole variance are estimated with it: where
    seeds differ much and a few happen to agree, the variance comes out too small and its degrees of freedom too many.
    That is too rare to matter at 5 %, but not at the 0.3 % that Holm asks of 15 pairs: six equal rows with three seeds
    had a "winner" in up to 2 of 10 simulated sweeps; with these widths in 5 % at most (scripts/simulate_comparison.py).
    """
    from scipy.special import stdtrit

    few, many = np.maximum(components.num_seeds - 1, 1), np.maximum(components.num_clusters - 1, 1)
    by_seeds = stdtrit(few, alpha / 2) ** 2 * (components.seeds + components.rest)
    return np.sqrt(by_seeds + stdtrit(many, alpha / 2) ** 2 * components.clusters)


def _cautious_p_values(means: np.ndarray, components: Components) -> np.ndarray:
    """The alpha at which the cautious interval ends at 0, from 1e-100 to 1."""
    low, high = np.full(np.shape(means), -100.0), np.zeros(np.shape(means))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reaches = _cautious_half_widths(components, 10**middle) >= np.abs(means)
        low, high = np.where(reaches, middle, low), np.where(reaches, high, middle)
    return 10**high
