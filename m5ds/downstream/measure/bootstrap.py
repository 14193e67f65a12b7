"""Confidence intervals by a bootstrap whose random numbers belong to the products.

Product i has weight Poisson(1) in replicate r, drawn by Philox from (seed, r, the product's hash). So two systems
evaluated on the same products get the same weights whatever their order or sharding: every comparison is paired.
The Poisson bootstrap equals the multinomial one up to O(1/N) (Chamandy et al., "Estimating uncertainty for massive data
streams", 2012). Give products of one group (`share_group`, product) the same key to resample groups.

Shape letters: N products, R replicates, S seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from m5ds.kernels.common import philox

_CDF = np.cumsum([exp(-1) / factorial(n) for n in range(13)])
_BLOCK = 2_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is significant at the interval's confidence."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.estimate:.4f} [{self.low:.4f}, {self.high:.4f}]"


def keys_of(ids: Sequence[str]) -> NDArray[np.int64]:
    """The products' (or groups') 64-bit hashes, the keys of their weights."""
    return np.array([philox.product_hash(name) for name in ids], dtype=np.int64)


def poisson_weights(keys_N: NDArray[np.int64], first: int, count: int, seed: int) -> NDArray[np.uint8]:
    """Weights [count, N] of replicates first..first+count."""
    product_N = torch.from_numpy(np.ascontiguousarray(keys_N))
    draw_D = torch.arange(first // 4, (first + count + 3) // 4)
    words = philox.random_words(seed=seed, draw=draw_D[:, None], product=product_N, stream=philox.Stream.BOOTSTRAP)
    uniform_RN = philox.uniform(torch.stack(words, 1).reshape(-1, len(keys_N))).numpy()
    weights_RN = np.searchsorted(_CDF, uniform_RN, side="right").astype(np.uint8)
    return weights_RN[first % 4 : first % 4 + count]


def _check(num_values: int, keys_N: NDArray[np.int64], num_replicates: int, confidence: float) -> None:
    if num_values != len(keys_N):
        raise ValueError(f"bootstrap: {num_values} values but {len(keys_N)} keys")
    if num_values < 2:
        raise ValueError(f"bootstrap: a confidence interval needs at least 2 products, got {num_values}")
    if num_replicates < 20 or not 0 < confidence < 1:
        raise ValueError(
            f"bootstrap: num_replicates must be >= 20 and 0 < confidence < 1, got {num_replicates}, {confidence}"
        )


def _in_order(
    values_SN: NDArray[np.float64], keys_N: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The columns by key, then by value, so that sums round alike whatever the products' order."""
    order = np.lexsort((*values_SN[::-1], keys_N))
    return values_SN[:, order], np.asarray(keys_N)[order]


def _blocks(keys_N: NDArray[np.int64], num_replicates: int, seed: int):
    step = max(4, _BLOCK // len(keys_N) // 4 * 4)
    for first in range(0, num_replicates, step):
        yield poisson_weights(keys_N, first, min(step, num_replicates - first), seed)


def _quantiles(replicates_R: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates_R[np.isfinite(replicates_R)], [tail, 1 - tail])
    return float(low), float(high)


def mean_replicates(
    values_SN: NDArray[np.float64], keys_N: NDArray[np.int64], num_replicates: int, seed: int
) -> NDArray[np.float64]:
    """Weighted means [R, S] of each row of values; NaN where all weights of a replicate are zero."""
    blocks = []
    for weights_RN in _blocks(keys_N, num_replicates, seed):
        weights = weights_RN.astype(np.float64)
        total_R = weights.sum(1)
        with np.errstate(invalid="ignore"):
            blocks.append((weights @ values_SN.T) / total_R[:, None])
    return np.concatenate(blocks)


def bootstrap_mean(
    values_N: NDArray[np.float64],
    keys_N: NDArray[np.int64],
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a mean over products."""
    return bootstrap_means({"mean": values_N}, keys_N, num_replicates=num_replicates, confidence=confidence, seed=seed)[
        "mean"
    ]


def bootstrap_means(
    values: dict[str, NDArray[np.float64]],
    keys_N: NDArray[np.int64],
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """`bootstrap_mean` of several values of the same products, with the weights drawn once."""
    if not values:
        return {}
    values_SN = np.stack([np.asarray(value_N, dtype=np.float64) for value_N in values.values()])
    _check(values_SN.shape[1], keys_N, num_replicates, confidence)
    values_SN, keys_N = _in_order(values_SN, keys_N)
    replicates_RS = mean_replicates(values_SN, keys_N, num_replicates, seed)
    intervals = {}
    for number, name in enumerate(values):
        low, high = _quantiles(replicates_RS[:, number], confidence)
        intervals[name] = Interval(estimate=float(values_SN[number].mean()), low=low, high=high, confidence=confidence)
    return intervals


def bootstrap_difference(
    values_N: NDArray[np.float64], baseline_N: NDArray[np.float64], keys_N: NDArray[np.int64], **options
) -> Interval:
    """Interval of mean(values - baseline), paired by product. Options as in `bootstrap_mean`."""
    if np.shape(values_N) != np.shape(baseline_N):
        raise ValueError(
            f"paired bootstrap: {len(values_N)} values but {len(baseline_N)} of the baseline; evaluate the same"
            " products"
        )
    return bootstrap_mean(np.asarray(values_N, dtype=np.float64) - np.asarray(baseline_N), keys_N, **options)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], float],
    keys_N: NDArray[np.int64],
    *,
    num_replicates: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of a set of products; `statistic` gets row numbers by ascending key, with repetitions.

    Information scores rise when products are repeated, so the replicates are centred on the estimate: the interval is
    estimate + quantiles(replicate - mean replicate). For a paired comparison give the difference of two statistics.
    """
    _check(len(keys_N), keys_N, num_replicates, confidence)
    rows_N = np.argsort(keys_N, kind="stable")
    keys_N = keys_N[rows_N]
    estimate = float(statistic(rows_N))
    replicates = [
        statistic(np.repeat(rows_N, weights_N)) if weights_N.any() else np.nan
        for weights_RN in _blocks(keys_N, num_replicates, seed)
        for weights_N in weights_RN
    ]
    values_R = np.asarray(replicates, dtype=np.float64)
    low, high = _quantiles(values_R - np.nanmean(values_R), confidence)
    return Interval(estimate=estimate, low=estimate + low, high=estimate + high, confidence=confidence)


def bootstrap_seeds(
    values_SN: NDArray[np.float64],
    keys_N: NDArray[np.int64],
    *,
    num_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over S training seeds and N products; both are resampled.

    With few seeds plain resampling understates their spread by (S - 1) / S; each resampled seed mean is therefore
    stretched about the grand mean by sqrt(S / (S - 1)). For a paired comparison give per-seed differences.
    """
    values_SN = np.asarray(values_SN, dtype=np.float64)
    if values_SN.ndim != 2 or len(values_SN) < 2:
        raise ValueError(f"bootstrap over seeds needs values [seeds >= 2, products], got shape {values_SN.shape}")
    num_seeds, num_products = values_SN.shape
    _check(num_products, keys_N, num_replicates, confidence)
    values_SN, keys_N = _in_order(values_SN, keys_N)
    means_RS = mean_replicates(values_SN, keys_N, num_replicates, seed)
    replicate_R, seed_S = torch.arange(num_replicates), torch.arange(num_seeds)
    words = philox.random_words(
        seed=seed, draw=replicate_R[:, None], product=seed_S, stream=philox.Stream.BOOTSTRAP, index=1
    )[0]
    chosen_RS = (words.numpy() * num_seeds) >> 32
    product_R = means_RS.mean(1)
    seed_mean_S = values_SN.mean(1)
    grand = float(seed_mean_S.mean())
    seed_R = (seed_mean_S[chosen_RS].mean(1) - grand) * np.sqrt(num_seeds / (num_seeds - 1))
    low, high = _quantiles(product_R + seed_R, confidence)
    return Interval(estimate=grand, low=low, high=high, confidence=confidence)


def seed_interval(estimates_S: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds, for statistics that are not means over products."""
    values_S = np.asarray(estimates_S, dtype=np.float64)
    if len(values_S) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {len(values_S)}")
    half = float(stats.t.ppf((1 + confidence) / 2, len(values_S) - 1) * values_S.std(ddof=1) / np.sqrt(len(values_S)))
    mean = float(values_S.mean())
    return Interval(estimate=mean, low=mean - half, high=mean + half, confidence=confidence)
