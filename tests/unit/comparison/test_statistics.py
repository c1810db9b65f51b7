import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llmtune.comparison.crossed import LEVEL, effects, half_widths, mean_squares, p_values
from llmtune.comparison.statistics import Cells, Need, estimate, holm, ratio, would_decide

pytestmark = pytest.mark.fast


def table(sums, weights=None) -> Cells:
    sums = np.asarray(sums, dtype=float)
    return Cells(sums=sums, weights=np.ones(sums.shape[1]) if weights is None else np.asarray(weights, dtype=float))


def drawn(mean=0.02, shape=(3, 40), parts=(0.005, 0.05, 0.03), seed=0) -> Cells:
    """A table of unequal weights; standard deviations of seeds, clusters and the rest in nats per token."""
    weights = np.round(100 * np.exp(np.random.default_rng(0).normal(0, 0.8, shape[1]))) + 1
    numbers = np.random.default_rng(seed + 1)
    seeds, clusters, rest = (
        spread * numbers.normal(size=size)
        for spread, size in zip(parts, ((shape[0], 1), (1, shape[1]), shape), strict=True)
    )
    return Cells(sums=weights * (mean + seeds + clusters + rest), weights=weights)


def test_two_seeds_by_two_clusters_by_hand():
    # Means of seeds 2 and 4, of clusters 1 and 5, in all 3; what is left: +-1. Mean squares: seeds 2 x (1 + 1) / 1 = 4,
    # clusters 2 x (4 + 4) / 1 = 16, rest 4 x 1 / 1 = 4. Seeds: (4 - 4) / 4 = 0; clusters: (16 - 4) / 4 = 3; rest: 4 / 4
    # = 1. Variance 4; all three have 1 degree of freedom, so the sum has, and t(1) at 0.975 is tan(0.475 pi).
    found = estimate(table([[-1, 5], [3, 5]]))
    assert (found.value, found.standard_error, found.degrees_of_freedom) == pytest.approx((3, 2, 1))
    half = 2 * math.tan(0.475 * math.pi)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert found.p_value == pytest.approx(1 - 2 / math.pi * math.atan(3 / 2))
    assert (found.num_seeds, found.num_clusters, found.basis) == (2, 2, "few seeds")


def test_two_seeds_by_three_clusters_by_hand():
    # Means of seeds 4 and 8, of clusters 3, 5 and 10, in all 6; what is left: 0 2 -2 and 0 -2 2. Mean squares: seeds
    # 3 x (4 + 4) / 1 = 24, clusters 2 x (9 + 1 + 16) / 2 = 26, rest 16 / 2 = 8. Of the variance, over the 6 cells:
    # seeds 16 / 6, clusters 18 / 6, rest 8 / 6, in all 7. Degrees of freedom: 42 / (16 / 1 + 18 / 2 + 8 / 2) = 42 / 29.
    found = estimate(table([[1, 5, 6], [5, 5, 14]]))
    assert found.value == pytest.approx(6)
    assert found.standard_error == pytest.approx(math.sqrt(7))
    assert found.degrees_of_freedom == pytest.approx(42 / 29)
    half = stats.t.ppf(0.975, 42 / 29) * math.sqrt(7)
    assert (found.low, found.high) == pytest.approx((6 - half, 6 + half))


def test_mean_squares_are_right_on_average_over_all_draws():
    # Each of 2 seeds, 2 clusters and 4 cells shifts by +-3, +-2 or +-1: 256 equally likely tables with the variances
    # 9, 4 and 1. The mean's variance is 9 / 2 + 4 / 2 + 1 / 4.
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=8)))
    seeds, clusters, rest = signs[:, :2, None], signs[:, None, 2:4], signs[:, 4:].reshape(-1, 2, 2)
    parts = effects(3 * seeds + 2 * clusters + rest, np.ones((256, 2)))
    squares = mean_squares(parts)
    assert squares.seeds.mean() == pytest.approx(2 * 9 + 1)
    assert squares.clusters.mean() == pytest.approx(2 * 4 + 1)
    assert squares.rest.mean() == pytest.approx(1)
    assert parts.mean.var() == pytest.approx(9 / 2 + 4 / 2 + 1 / 4)
    assert (squares.seeds + squares.clusters - squares.rest).mean() / 4 == pytest.approx(parts.mean.var())


def test_tokens_weigh_and_one_seed_has_the_jackknifes_variance():
    cells = table([[4.0, 1.0, 9.0, 2.0]], [10, 4, 30, 6])
    left_out = [np.delete(cells.sums, n).sum() / np.delete(cells.weights, n).sum() for n in range(4)]
    found = estimate(cells)
    assert found.value == pytest.approx(16 / 50)
    # Leaving one out moves a ratio's mean a little from the ratio; the squares are taken around the ratio itself.
    assert found.standard_error**2 == pytest.approx(3 / 4 * sum((mean - 16 / 50) ** 2 for mean in left_out))
    assert found.degrees_of_freedom == pytest.approx(3)
    assert found.basis == "examples"


def test_equal_weights_and_one_seed_give_the_t_interval_of_a_mean():
    values = np.array([0.3, -0.1, 0.8, 0.2, 0.5])
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    found = estimate(table([values]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_a_shift_of_a_seed_on_every_token_is_no_noise():
    # Per token the second seed is above the first by 0.1 in every cluster, long or short.
    weights = np.array([10.0, 200.0, 35.0])
    squares = mean_squares(effects(np.stack([0.2 * weights, 0.3 * weights]), weights))
    assert squares.rest == pytest.approx(0, abs=1e-20)
    assert squares.clusters == pytest.approx(0, abs=1e-20)
    assert squares.seeds == pytest.approx(3 * 0.1**2 / 2)


def test_many_tables_at_once_are_each_table_by_itself():
    tables = [drawn(seed=seed) for seed in range(3)]
    parts = effects(np.stack([t.sums for t in tables]), np.stack([t.weights for t in tables]))
    components = mean_squares(parts).components()
    alone = [estimate(t) for t in tables]
    assert parts.mean == pytest.approx([each.value for each in alone])
    assert half_widths(components) == pytest.approx([each.high - each.value for each in alone])
    assert p_values(parts.mean, components) == pytest.approx([each.p_value for each in alone])


def test_a_base_model_has_examples_alone():
    one = estimate(drawn(shape=(1, 40)), has_seeds=False)
    repeated = estimate(drawn(shape=(1, 40)).repeated(3), has_seeds=False)
    assert one.basis == repeated.basis == "no seeds"
    assert (one.num_seeds, repeated.num_seeds) == (1, 1)
    assert (repeated.value, repeated.standard_error) == pytest.approx((one.value, one.standard_error))


def test_one_cluster_says_nothing_of_its_variance():
    cells = table([[2.0], [4.0], [6.0]], [10])
    found = estimate(cells)
    assert found.value == pytest.approx(0.4)
    assert all(math.isnan(x) for x in (found.low, found.high, found.standard_error, found.p_value))
    assert (found.num_clusters, found.basis) == (1, "seeds")
    assert would_decide(cells) == Need()
    quotient = ratio(cells, cells)
    assert quotient.value == 1
    assert math.isnan(quotient.low)
    assert math.isnan(quotient.high)


def test_clusters_without_tokens_dont_count():
    full, padded = table([[1.0, 5.0], [2.0, 4.0]], [3, 9]), table([[1.0, 0.0, 5.0], [2.0, 0.0, 4.0]], [3, 0, 9])
    assert estimate(padded) == estimate(full)
    assert math.isnan(estimate(table([[1.0, 0.0]], [3, 0])).low)


def test_no_difference_at_all_is_no_claim():
    found = estimate(drawn() - drawn())
    assert (found.value, found.low, found.high, found.standard_error, found.p_value) == (0, 0, 0, 0, 1)
    assert would_decide(drawn() - drawn()) == Need()


def test_a_difference_without_any_variance_is_certain():
    found = estimate(table(np.full((3, 4), 0.25)))
    assert (found.low, found.high, found.p_value) == (0.25, 0.25, 0)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_run_that_diverged_has_no_interval(loss):
    cells = table([[1.0, loss], [2.0, 3.0]])
    found = estimate(cells - table([[1.0, 1.0], [1.0, loss]]))
    assert not math.isfinite(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.p_value)
    assert math.isnan(ratio(table([[1.0, 1.0], [1.0, 1.0]]), cells).low)
    assert would_decide(cells) == Need()


def test_another_unit_changes_nothing_else():
    cells = drawn()
    nats, bits = estimate(cells), estimate(1 / math.log(2) * cells)
    assert bits.p_value == pytest.approx(nats.p_value)
    assert bits.degrees_of_freedom == pytest.approx(nats.degrees_of_freedom)
    scaled = nats.scaled(1 / math.log(2))
    assert (scaled.value, scaled.low, scaled.high, scaled.standard_error) == pytest.approx(
        (bits.value, bits.low, bits.high, bits.standard_error)
    )
    turned = nats.scaled(-1)
    assert (turned.low, turned.high, turned.standard_error) == (-nats.high, -nats.low, nats.standard_error)


@pytest.mark.parametrize("seed", range(20))
def test_a_p_value_is_below_5_percent_just_where_0_is_outside(seed):
    for mean in (0.0, 0.02, 0.03):
        found = estimate(drawn(mean=mean, parts=(0.01, 0.05, 0.03), seed=seed))
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_p_values_are_the_levels_at_which_intervals_end_at_0():
    squares = mean_squares(effects(drawn().sums, drawn().weights))
    components = squares.components()
    for alpha in (0.3, 0.05, 0.02, 0.003, 1e-5):
        width = half_widths(components, alpha)
        # Between the interval's own t and the cautious widths there is a step at 5 %.
        assert p_values(width * (1 + 1e-9), components) == pytest.approx(alpha, rel=1e-6)
        assert p_values(width * (1 - 1e-9), components) >= alpha * (1 - 1e-6)


def test_below_5_percent_each_variance_has_its_own_t_value():
    # Two seeds by three clusters, see above: seeds and rest 4 with 1 degree of freedom, clusters 3 with 2.
    components = mean_squares(effects(np.array([[1.0, 5, 6], [5, 5, 14]]), np.ones(3))).components()
    by_hand = math.sqrt(stats.t.ppf(0.995, 1) ** 2 * 4 + stats.t.ppf(0.995, 2) ** 2 * 3)
    assert half_widths(components, 0.01) == pytest.approx(by_hand)
    assert half_widths(components, LEVEL) == pytest.approx(stats.t.ppf(0.975, 42 / 29) * math.sqrt(7))


def test_holm_by_hand():
    # 4 x 0.005 = 0.02; 3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 1 x 0.04, but not below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 30), (2, 30), (3, 30), (5, 12)])
def test_a_ratios_interval_holds_what_the_test_does_not_reject(shape, seed):
    top, bottom = drawn(0.19, shape, seed=seed), drawn(0.21, shape, seed=seed + 100)
    found = ratio(top, bottom)
    assert found.value == pytest.approx(top.sums.sum() / bottom.sums.sum())
    assert found.low < found.value < found.high
    for end, inwards in ((found.low, 1e-6), (found.high, -1e-6)):
        if math.isfinite(end):
            assert estimate(top - (end + inwards) * bottom).p_value >= 0.05
            assert estimate(top - (end - inwards) * bottom).p_value < 0.05
    for q in np.linspace(max(found.low, -50), min(found.high, 50), 23)[1:-1]:
        assert estimate(top - q * bottom).p_value >= 0.05


def test_fieller_by_his_own_formula():
    # One seed, equal weights: the ends are the roots of a quadratic.
    numbers = np.random.default_rng(3)
    x, y = 2 + numbers.normal(size=25), 4 + numbers.normal(size=25)
    t2 = stats.t.ppf(0.975, 24) ** 2
    (xx, xy), (_, yy) = np.cov(x, y) / 25
    ends = np.roots([y.mean() ** 2 - t2 * yy, -2 * (x.mean() * y.mean() - t2 * xy), x.mean() ** 2 - t2 * xx])
    found = ratio(table([x]), table([y]))
    assert (found.low, found.high) == pytest.approx(sorted(ends))


def test_a_ratio_to_what_may_be_0_has_no_end():
    unsure = drawn(0.0, seed=5)
    assert estimate(unsure).p_value > 0.05
    far = ratio(drawn(0.2, seed=6), unsure)
    assert math.isinf(far.low) != math.isinf(far.high)
    nothing = ratio(drawn(0.0, seed=7), unsure)
    assert (nothing.low, nothing.high) == (-math.inf, math.inf)
    undefined = ratio(drawn(), 0.0 * drawn())
    assert math.isnan(undefined.value)
    assert (undefined.low, undefined.high) == (-math.inf, math.inf)


def test_a_ratio_of_a_table_to_itself_is_known():
    sure = drawn(0.2)
    assert ratio(3.0 * sure, sure).value == pytest.approx(3)
    assert (ratio(sure, sure).low, ratio(sure, sure).high) == pytest.approx((1, 1))


def test_seeds_that_would_decide():
    # Four clusters that agree, two seeds 1 and 5 (variance 8), no noise: with S seeds in all the half width is
    # t(S - 1) x sqrt(8 / S), first below the mean of 3 with 6.
    cells = table([[1.0] * 4, [5.0] * 4])
    widths = {s: stats.t.ppf(0.975, s - 1) * math.sqrt(8 / s) for s in range(2, 8)}
    assert widths[5] > 3 > widths[6]
    assert would_decide(cells) == Need(seeds=4)
    # At a stricter level more are needed; where it is decided, none.
    stricter = would_decide(cells, alpha=0.01).seeds
    assert stricter is not None
    assert stricter + 2 == next(s for s in range(2, 99) if stats.t.ppf(0.995, s - 1) * math.sqrt(8 / s) < 3)
    assert would_decide(table(np.array([[1.0], [5.0]]) + np.full((2, 4), 60.0))) == Need(seeds=0)


def test_examples_that_would_decide_where_seeds_cant():
    # Three seeds that agree, four clusters 0, 2, 4, 10 (variance 56 / 3): k times as many have a half width of
    # t(4 k - 1) x sqrt(56 / 3 / 4 / k).
    cells = table([[0.0, 2.0, 4.0, 10.0]] * 3)
    factor = next(
        k / 10 for k in range(10, 100) if stats.t.ppf(0.975, 4 * k / 10 - 1) * math.sqrt(56 / 3 / 4 / (k / 10)) < 4
    )
    assert would_decide(cells) == Need(examples_factor=factor)
    assert factor > 1
    rounded = would_decide(cells - table(np.full((3, 4), 3.73))).examples_factor
    assert rounded is not None
    assert rounded > 99
    assert rounded % 10 == 0


def test_neither_seeds_nor_examples_alone_may_do():
    # Seeds at -1, 0 and 1, clusters too, and nothing else: the mean of 0.01 drowns in either.
    apart = np.array([-1.0, 0.0, 1.0])
    assert would_decide(table(0.01 + apart[:, None] + apart)) == Need()


def test_one_seed_asks_for_two_more():
    assert would_decide(drawn(shape=(1, 40))) == Need(seeds=2)


def test_enough_seeds_do_decide_about_every_second_time():
    # A forecast from the true variances: mean 0.01, seeds 0.02, nothing else.
    cells = table(0.01 + 0.02 * np.array([[-1.0], [0.0], [1.0]]) * np.ones(5))
    more = would_decide(cells).seeds
    assert more is not None
    numbers = np.random.default_rng(0)

    def share(num_seeds: int) -> float:
        sums = 0.01 + 0.02 * numbers.normal(size=(1000, num_seeds, 1)) * np.ones(5)
        parts = effects(sums, np.ones((1000, 5)))
        return float((p_values(parts.mean, mean_squares(parts).components()) < 0.05).mean())

    assert 0.4 < share(3 + more) < 0.65
    assert share(3) < 0.2
    assert share(3 + 3 * more) > 0.9


def test_only_tables_of_the_same_cells_add_up():
    cells = drawn()
    assert np.array_equal((cells + cells - cells).sums, cells.sums)
    for other in (drawn(shape=(1, 40)), drawn(shape=(3, 39)), Cells(sums=cells.sums, weights=cells.weights + 1)):
        with pytest.raises(ValueError, match="same seeds, clusters and weights"):
            cells - other


def test_tables_that_hold_nothing_are_refused():
    for sums, weights in (((3, 4), 5), ((0, 4), 4)):
        with pytest.raises(ValueError, match="don't fit"):
            Cells(sums=np.zeros(sums), weights=np.ones(weights))
    for weights in (np.zeros(4), np.array([1.0, 1, 1, -1]), np.array([1.0, 1, 1, math.nan])):
        with pytest.raises(ValueError, match="weights must be 0 or more"):
            Cells(sums=np.zeros((3, 4)), weights=weights)
