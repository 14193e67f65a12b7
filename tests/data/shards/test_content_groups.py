"""Groups that share byte-equal media, against every pair of files compared."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from m5ds.data.catalogue.records import CatalogueError
from m5ds.data.shards import content_groups
from m5ds.data.shards.content_groups import MediaSizes, group_by_content


def grouped(folder: Path, products: list[list[bytes]], groups: list[int], placeholder_products: int) -> list[int]:
    media, paths = MediaSizes(), []
    for number, contents in enumerate(products):
        paths.append([folder / f"{number}.{place}" for place in range(len(contents))])
        for path, data in zip(paths[-1], contents, strict=True):
            path.write_bytes(data)
        media.add(number, (len(data) for data in contents))
    found = group_by_content(
        np.array(groups, np.uint64), media, lambda number: paths[number], placeholder_products=placeholder_products
    )
    return found.tolist()


def by_pairs(products: list[list[bytes]], groups: list[int], placeholder_products: int) -> list[int]:
    """Groups connected through a content, united until nothing changes; a united group's hash is their exclusive or."""
    united = {group: {group} for group in groups}
    for data in {data for contents in products for data in contents if data}:
        holders = [number for number, contents in enumerate(products) if data in contents]
        if len(holders) <= placeholder_products:
            for one, other in itertools.pairwise(holders):
                both = united[groups[one]] | united[groups[other]]
                for group in both:
                    united[group] = both
    return [int(np.bitwise_xor.reduce(np.array(sorted(united[group]), np.uint64))) for group in groups]


@pytest.mark.parametrize("seed", range(12))
def test_groups_are_united_as_comparing_every_pair_of_files_does(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short files of two letters: many share a size, a head or all; heads of 4 bytes, read 3 at a time."""
    monkeypatch.setattr(content_groups, "_HEAD_BYTES", 4)
    monkeypatch.setattr(content_groups, "_BLOCK_BYTES", 3)
    rng = np.random.default_rng(seed)
    longest = 3 + seed // 2
    products = [
        [bytes(rng.integers(97, 99, rng.integers(0, longest + 1)).astype(np.uint8)) for _ in range(rng.integers(0, 3))]
        for _ in range(14)
    ]
    groups = rng.integers(1, 2**62, 12)[rng.integers(0, 12, len(products))].tolist()
    for placeholder_products in (1, 2, 3, 14):
        found = grouped(tmp_path, products, groups, placeholder_products)
        assert found == by_pairs(products, groups, placeholder_products)


def test_long_files_that_differ_in_one_byte_are_different(tmp_path: Path) -> None:
    """At the head's last byte, just behind it, and where a second block is read."""
    long = bytes(2**21)
    for place in (2**16 - 1, 2**16, 2**20 - 1, 2**20, 2**21 - 1):
        other = long[:place] + b"x" + long[place + 1 :]
        assert grouped(tmp_path, [[long], [other], [long]], [5, 6, 8], 9) == [5 ^ 8, 6, 5 ^ 8]
    exact = bytes(2**16)
    assert grouped(tmp_path, [[exact], [exact], [exact + b"x"]], [5, 6, 8], 9) == [3, 3, 8]


def test_only_files_that_may_be_alike_are_opened(tmp_path: Path) -> None:
    media = MediaSizes()
    for number, sizes in enumerate([[3], [4, 0], [0]]):
        media.add(number, sizes)
    groups = np.array([1, 2, 3], np.uint64)
    assert group_by_content(groups, media, lambda number: [], placeholder_products=9).tolist() == [1, 2, 3]
    media.add(3, [4])
    with pytest.raises(CatalogueError, match="cannot be read for --group-by-content"):
        group_by_content(
            np.array([1, 2, 3, 4], np.uint64), media, lambda number: [tmp_path / "gone"] * 2, placeholder_products=9
        )
