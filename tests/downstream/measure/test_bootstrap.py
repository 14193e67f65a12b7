"""The bootstrap belongs to the products, covers as often as it says, and is paired."""

import numpy as np
import pytest
import torch
from scipy import stats

from m5ds.downstream.measure import bootstrap, metrics
from m5ds.downstream.measure.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_seeds,
    bootstrap_statistic,
    keys_of,
    poisson_weights,
    seed_interval,
)
from m5ds.kernels.common import philox


def keys(count: int, name: str = "p"):
    return keys_of([f"{name}{i}" for i in range(count)])


def test_weights_follow_poisson_of_mean_one():
    weights_RN = poisson_weights(keys(500), 0, 400, seed=1)
    assert abs(weights_RN.mean() - 1) < 0.01
    assert abs(weights_RN.var() - 1) < 0.02
    assert abs((weights_RN == 0).mean() - np.exp(-1)) < 0.005
    between_replicates = np.corrcoef(weights_RN[:8].astype(float))
    assert np.abs(between_replicates - np.eye(8)).max() < 0.2


def test_a_products_weights_do_not_depend_on_its_companions_or_on_blocks():
    names = [f"p{i}" for i in range(30)]
    whole_RN = poisson_weights(keys_of(names), 0, 20, seed=3)
    np.testing.assert_array_equal(whole_RN[:, [4, 2]], poisson_weights(keys_of(["p4", "p2"]), 0, 20, seed=3))
    np.testing.assert_array_equal(whole_RN[6:11], poisson_weights(keys_of(names), 6, 5, seed=3))
    assert (whole_RN != poisson_weights(keys_of(names), 0, 20, seed=4)).any()


def test_interval_does_not_depend_on_order_or_on_global_random_state(monkeypatch):
    random = np.random.default_rng(0)
    values_N, key_N, order = random.random(200), keys(200), random.permutation(200)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = bootstrap_mean(values_N, key_N)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    monkeypatch.setattr(bootstrap, "_BLOCK", 3000)
    second = bootstrap_mean(values_N[order], key_N[order])
    assert first.low == pytest.approx(second.low, abs=1e-12)
    assert first.high == pytest.approx(second.high, abs=1e-12)


def test_interval_of_a_mean_has_the_normal_width():
    values_N = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_mean(values_N, keys(400), num_replicates=2000)
    half = 1.96 * values_N.std() / 20
    assert interval.estimate == values_N.mean()
    assert interval.high - interval.estimate == pytest.approx(half, rel=0.12)
    assert interval.estimate - interval.low == pytest.approx(half, rel=0.12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        values_N = (random.random(80) < 0.3).astype(float)
        interval = bootstrap_mean(values_N, keys(80, f"t{trial}-"), num_replicates=200, confidence=0.9)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.82 <= covered / 200 <= 0.96


def test_pairing_finds_a_difference_that_unpaired_intervals_hide():
    random = np.random.default_rng(3)
    base_N = random.random(150)
    better_N = base_N + 0.02 + 0.01 * random.normal(size=150)
    difference = bootstrap_difference(better_N, base_N, keys(150))
    assert difference.excludes_zero and difference.low > 0
    assert bootstrap_mean(better_N, keys(150)).low < bootstrap_mean(base_N, keys(150)).high
    assert not bootstrap_difference(base_N, base_N, keys(150)).excludes_zero


def test_products_of_one_group_are_resampled_together():
    """Ten copies of each value say no more than one copy."""
    values_N = np.random.default_rng(4).random(40)
    one = bootstrap_mean(values_N, keys(40))
    copies = bootstrap_mean(np.repeat(values_N, 10), np.repeat(keys(40), 10))
    assert (copies.low, copies.high) == (pytest.approx(one.low), pytest.approx(one.high))


def test_interval_of_a_clustering_score_is_centred_on_its_estimate():
    random = np.random.default_rng(5)
    label_N = random.integers(0, 10, 120)
    cluster_N = np.where(random.random(120) < 0.7, label_N, random.integers(0, 10, 120))
    interval = bootstrap_statistic(
        lambda rows: metrics.normalized_mutual_information(label_N[rows], cluster_N[rows]), keys(120)
    )
    assert interval.estimate == metrics.normalized_mutual_information(label_N, cluster_N)
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < 0.3


def test_statistic_of_a_mean_agrees_with_the_direct_interval():
    values_N = np.random.default_rng(6).random(100)
    direct = bootstrap_mean(values_N, keys(100), num_replicates=400)
    general = bootstrap_statistic(lambda rows: values_N[rows].mean(), keys(100), num_replicates=400)
    assert general.low == pytest.approx(direct.low, abs=0.004)
    assert general.high == pytest.approx(direct.high, abs=0.004)


def test_spread_between_seeds_widens_the_interval():
    random = np.random.default_rng(7)
    product_N = random.random(200)
    alike_SN = np.stack([product_N] * 3)
    apart_SN = alike_SN + np.array([-0.1, 0.0, 0.1])[:, None]
    narrow, wide = bootstrap_seeds(alike_SN, keys(200)), bootstrap_seeds(apart_SN, keys(200))
    assert narrow.estimate == pytest.approx(wide.estimate)
    assert narrow.high - narrow.low == pytest.approx(
        np.subtract(*[getattr(bootstrap_mean(product_N, keys(200)), end) for end in ("high", "low")]), abs=1e-9
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_seed_interval_is_students():
    interval = seed_interval([0.5, 0.6, 0.7])
    assert interval.estimate == pytest.approx(0.6)
    assert interval.high - 0.6 == pytest.approx(4.302653 * 0.1 / np.sqrt(3), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(np.ones(1), keys(1)), "at least 2 products"),
        (lambda: bootstrap_mean(np.ones(3), keys(2)), "3 values but 2 keys"),
        (lambda: bootstrap_mean(np.ones(3), keys(3), num_replicates=5), "num_replicates"),
        (lambda: bootstrap_difference(np.ones(3), np.ones(2), keys(3)), "same products"),
        (lambda: bootstrap_seeds(np.ones((1, 3)), keys(3)), "seeds >= 2"),
        (lambda: seed_interval([0.5]), "at least 2 seeds"),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def weights_by_definition(key_N, count, seed):
    """The quantiles of Poisson(1) at the products' uniform numbers: four replicates a Philox block."""
    rows = []
    for replicate in range(count):
        words = philox.random_words(
            seed=seed,
            draw=torch.tensor(replicate // 4),
            product=torch.from_numpy(key_N),
            stream=philox.Stream.BOOTSTRAP,
        )
        uniform_N = philox.uniform(words[replicate % 4]).numpy().astype(np.float64)
        rows.append([int(np.searchsorted(stats.poisson.cdf(range(20), 1), u, side="right")) for u in uniform_N])
    return np.array(rows)


def test_weights_are_the_poisson_quantiles_of_the_products_random_words():
    expected_RN = weights_by_definition(keys(60), 23, seed=5)
    np.testing.assert_array_equal(poisson_weights(keys(60), 0, 23, seed=5), expected_RN)
    for first, count in ((0, 1), (3, 1), (3, 2), (4, 4), (5, 9)):
        np.testing.assert_array_equal(
            poisson_weights(keys(60), first, count, seed=5), expected_RN[first : first + count]
        )


def test_the_rarest_weights_have_their_probabilities(monkeypatch):
    """Weights above 6 hardly ever come; the table behind them is compared where random numbers cannot reach."""
    edges = np.array([stats.poisson.cdf(n, 1) for n in range(12)])
    words = np.concatenate([edges - 1e-7, edges[:8] + 1e-7])
    monkeypatch.setattr(bootstrap.philox, "uniform", lambda _: torch.from_numpy(words)[None].repeat(4, 1))
    weights_N = poisson_weights(keys(len(words)), 0, 4, seed=0)[0]
    assert weights_N[:8].tolist() == list(range(8))
    assert weights_N[12:].tolist() == list(range(1, 9))
    assert weights_N.dtype == np.uint8 and weights_N.max() <= 12


def replicates(values_N, key_N, count, seed=0):
    """Weighted means, with loops."""
    weights_RN = weights_by_definition(key_N, count, seed)
    return np.array([(w * values_N).sum() / w.sum() if w.sum() else np.nan for w in weights_RN])


@pytest.mark.parametrize("products", [2, 9])
def test_interval_of_a_mean_is_between_the_quantiles_of_its_replicates(products):
    """Of two products the weights are all zero in one replicate of seven: it does not count."""
    values_N = np.random.default_rng(products).random(products)
    interval = bootstrap_mean(values_N, keys(products), num_replicates=40, confidence=0.8, seed=3)
    low, high = np.nanquantile(replicates(values_N, keys(products), 40, seed=3), [0.1, 0.9])
    assert (interval.estimate, interval.confidence) == (pytest.approx(values_N.mean()), 0.8)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_interval_of_a_statistic_is_its_replicates_about_the_estimate():
    values_N = np.random.default_rng(1).random(6)

    def statistic(rows):
        return float(values_N[rows].max())

    interval = bootstrap_statistic(statistic, keys(6), num_replicates=30, confidence=0.7, seed=2)
    weights_RN = weights_by_definition(keys(6), 30, 2)
    maxima = np.array([values_N[w > 0].max() if w.any() else np.nan for w in weights_RN])
    low, high = np.nanquantile(maxima - np.nanmean(maxima), [0.15, 0.85])
    assert (interval.estimate, interval.confidence) == (values_N.max(), 0.7)
    assert interval.low == pytest.approx(values_N.max() + low)
    assert interval.high == pytest.approx(values_N.max() + high)


def test_a_replicate_without_any_product_is_left_out_of_a_statistic():
    asked = []

    def statistic(rows):
        asked.append(len(rows))
        return float(len(rows))

    interval = bootstrap_statistic(statistic, keys(2), num_replicates=40)
    totals = weights_by_definition(keys(2), 40, 0).sum(1)
    assert (totals == 0).any() and asked[1:] == totals[totals > 0].tolist()
    assert np.isfinite([interval.low, interval.high]).all()


def test_seeds_and_products_are_both_resampled():
    values_SN = np.random.default_rng(8).random((3, 7))
    interval = bootstrap_seeds(values_SN, keys(7), num_replicates=24, confidence=0.6, seed=4)
    product_R = replicates(values_SN.mean(0), keys(7), 24, seed=4)
    seed_R = []
    for replicate in range(24):
        words = philox.random_words(
            seed=4, draw=torch.tensor(replicate), product=torch.arange(3), stream=philox.Stream.BOOTSTRAP, index=1
        )[0]
        chosen = [int(word) * 3 // 2**32 for word in words]
        assert all(0 <= seed < 3 for seed in chosen)
        seed_R.append((values_SN.mean(1)[chosen].mean() - values_SN.mean()) * np.sqrt(3 / 2))
    low, high = np.quantile(product_R + seed_R, [0.2, 0.8])
    assert (interval.estimate, interval.confidence) == (pytest.approx(values_SN.mean()), 0.6)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_defaults_are_95_percent_of_a_thousand_replicates_of_seed_zero():
    values_N = np.random.default_rng(9).random(12)
    said = {"confidence": 0.95, "seed": 0}
    thousand = said | {"num_replicates": 1000}
    assert bootstrap_mean(values_N, keys(12)) == bootstrap_mean(values_N, keys(12), **thousand)
    several = {"a": values_N, "b": values_N**2}
    assert bootstrap_means(several, keys(12)) == bootstrap_means(several, keys(12), **thousand)
    values_SN = np.stack([values_N, values_N + 0.1])
    assert bootstrap_seeds(values_SN, keys(12)) == bootstrap_seeds(values_SN, keys(12), **thousand)

    def mean(rows):
        return float(values_N[rows].mean())

    assert bootstrap_statistic(mean, keys(12)) == bootstrap_statistic(mean, keys(12), num_replicates=300, **said)
    assert seed_interval([1.0, 2.0]).confidence == 0.95
    assert Interval(estimate=0, low=0, high=0).confidence == 0.95


def test_several_values_get_the_intervals_that_each_would_get_alone():
    random = np.random.default_rng(10)
    values = {"a": random.random(15), "b": random.random(15)}
    together = bootstrap_means(values, keys(15), num_replicates=50)
    for name, values_N in values.items():
        alone = bootstrap_mean(values_N, keys(15), num_replicates=50)
        assert together[name].estimate == alone.estimate
        assert (together[name].low, together[name].high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert bootstrap_means({}, keys(15)) == {}


def test_replicates_are_made_in_blocks_of_whole_draws_that_fit(monkeypatch):
    blocks = []

    def weights(key_N, first, count, seed):
        blocks.append((first, count))
        return np.ones((count, len(key_N)), dtype=np.uint8)

    monkeypatch.setattr(bootstrap, "poisson_weights", weights)
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    bootstrap_mean(np.arange(10.0), keys(10), num_replicates=21)
    assert blocks == [(0, 8), (8, 8), (16, 5)]
    blocks.clear()
    bootstrap_mean(np.arange(60.0), keys(60), num_replicates=22)  # fewer than four would fit
    assert blocks == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 2)]


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False)],
)
def test_zero_at_an_end_is_inside_the_interval(low, high, excludes):
    assert Interval(estimate=0.0, low=low, high=high).excludes_zero == excludes


def test_an_interval_is_printed_with_its_ends():
    assert str(Interval(estimate=0.5, low=0.25, high=0.75)) == "0.5000 [0.2500, 0.7500]"


def test_the_least_that_an_interval_can_be_made_of_is_accepted():
    two = np.array([0.0, 1.0])
    assert bootstrap_mean(two, keys(2), num_replicates=20).low >= 0
    assert bootstrap_seeds(np.stack([two, two]), keys(2), num_replicates=20).estimate == 0.5
    assert seed_interval([0.0, 1.0], confidence=0.5).high == pytest.approx(0.5 + 0.5)
    for options in ({"num_replicates": 19}, {"confidence": 0.0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="num_replicates must be >= 20 and 0 < confidence < 1"):
            bootstrap_mean(two, keys(2), **options)
    with pytest.raises(ValueError, match="seeds >= 2"):
        bootstrap_seeds(two, keys(2))


def test_products_of_one_key_are_ordered_by_all_their_values():
    values_SN = np.array([[2.0, 1.0, 1.0, 0.0], [5.0, 5.0, 4.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    for columns in (values_SN, values_SN[[1, 2, 0]], values_SN[[2, 0, 1]]):
        keys_N = np.array([7, 7, 7, 3])
        found, ordered = bootstrap._in_order(columns, keys_N)
        assert ordered.tolist() == [3, 7, 7, 7]
        rows = [tuple(column) for column in columns.T.tolist()]
        assert [tuple(column) for column in found.T.tolist()] == [rows[3], *sorted(rows[:3])]
