"""Which split a group falls in, and the hashes that decide order and splits."""

import hashlib

import numpy as np
import pytest
from catalogue_cases import record, write_catalogue

from m5ds.data.catalogue.records import CatalogueError
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.plan import assign_splits, keyed_hash
from m5ds.data.shards.reader import ShardReader


def splits_of(sizes, ratios):
    """The split of each group; groups are given in the order of their hashes, one hash 7 apart."""
    groups = np.repeat(np.arange(len(sizes), dtype=np.uint64) * 7, sizes)
    split_N = assign_splits(groups[::-1], ratios, "share_group")[::-1]
    first = np.cumsum([0, *sizes[:-1]])
    assert (split_N == np.repeat(split_N[first], sizes)).all(), "a group straddles splits"
    return split_N[first].tolist()


@pytest.mark.parametrize(
    ("sizes", "ratios", "expected"),
    [
        ([10] * 10, (0.8, 0.1, 0.1), [0] * 8 + [1, 2]),
        # Middles of the groups at 0.25, 0.55, 0.65, 0.75, 0.85, 0.95; cuts at 0.5 and 0.8.
        ([50, 10, 10, 10, 10, 10], (0.5, 0.3, 0.2), [0, 1, 1, 1, 2, 2]),
        # A group whose middle lies past the cut goes to the next split: at 0.1, 0.6.
        ([20, 80], (0.5, 0.5, 0.0), [0, 1]),
        ([80, 20], (0.5, 0.5, 0.0), [0, 1]),
        ([10] * 4, (0.5, 0.0, 0.5), [0, 0, 2, 2]),
        ([10] * 4, (0.0, 1.0, 0.0), [1] * 4),
        # No split that is wanted stays empty, however small its share or large a group.
        ([5, 5, 5], (0.98, 0.01, 0.01), [0, 1, 2]),
        ([5, 5, 5, 5], (0.01, 0.01, 0.98), [0, 1, 2, 2]),
        ([97, 1, 1, 1], (0.1, 0.1, 0.8), [0, 1, 2, 2]),
    ],
)
def test_groups_are_cut_where_the_ratios_are_met(sizes, ratios, expected):
    assert splits_of(sizes, ratios) == expected


def test_fewer_groups_than_splits_are_refused():
    with pytest.raises(CatalogueError, match=r"2 group\(s\) by 'share_group' cannot fill 3 splits"):
        splits_of([3, 3], (0.8, 0.1, 0.1))
    assert splits_of([3, 3], (0.8, 0.2, 0.0)) == [0, 1]


def test_hashes_stay_what_they_were_and_differ_by_seed_and_purpose():
    """Shards of one catalogue are built to the same bytes for ever."""
    digest = hashlib.blake2b("3:order:台灯".encode(), digest_size=8).digest()
    assert keyed_hash(3, "order", "台灯") == sum(byte << (8 * i) for i, byte in enumerate(digest))
    assert len({keyed_hash(seed, purpose, "a") for seed in (0, 1) for purpose in ("order", "group")}) == 4


def test_products_lie_in_the_order_of_their_keyed_hashes(tmp_path):
    """The order of a shard set is a contract: another one would change every run that reads it (ORDER)."""
    catalogue = write_catalogue(tmp_path / "catalogue", [record(number) for number in range(20)])
    build_shards(catalogue, tmp_path / "out", BuildOptions(ratios=(1.0, 0.0, 0.0), seed=3))
    ids = ShardReader(tmp_path / "out", "train").index(0).table["id"].to_pylist()
    assert len(ids) == 20 and ids == sorted(ids, key=lambda name: keyed_hash(3, "order", name))
