"""The bootstrap belongs to the products, covers as often as it says, and is paired."""

import numpy as np
import pytest
import torch

from m5ds.downstream import bootstrap, metrics
from m5ds.downstream.bootstrap import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_seeds,
    bootstrap_statistic,
    keys_of,
    poisson_weights,
    seed_interval,
)


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
