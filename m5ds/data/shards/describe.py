"""What the paper reports of its data, of any shard directory: presence, category long tail, attributes, title lengths.

Read from manifest and indexes alone, so that it costs no more for a terabyte of media.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m5ds.data.shards.manifest import Manifest, read_index, read_manifest

_QUANTILES = (0, 10, 50, 90, 99, 100)
_HEAD_SHARES = (1, 5, 10, 20, 50)
_MOST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Columns of the indexes over all splits, N products."""

    manifest: Manifest
    split_N: NDArray[np.str_]
    label_N: NDArray[np.int64]
    """Index into the manifest's categories, -1 unknown."""
    title_chars_N: NDArray[np.int64]
    table_pairs_N: NDArray[np.int64]

    @property
    def category_sizes(self) -> NDArray[np.int64]:
        """Products of each category over all splits, largest first; categories without products left out."""
        sizes = np.bincount(self.label_N[self.label_N >= 0], minlength=len(self.manifest.categories))
        return np.sort(sizes[sizes > 0])[::-1]


def gather(directory: str) -> Statistics:
    """Read the manifest and all indexes. Raises `ValueError` and CorruptShardError as they do."""
    manifest = read_manifest(directory)
    names = ("label", "title_chars", "table_pairs")
    columns: dict[str, list[NDArray[np.int64]]] = {name: [np.empty(0, np.int64)] for name in names}
    splits: list[NDArray[np.str_]] = []
    for split_name, split in manifest.splits.items():
        for entry in split.shards:
            index = read_index(directory, entry)
            splits.append(np.full(index.num_rows, split_name))
            for name in names:
                columns[name].append(index.column(name).to_numpy())
    label_N, title_chars_N, table_pairs_N = (np.concatenate(columns[name]) for name in names)
    return Statistics(
        manifest=manifest,
        split_N=np.concatenate(splits),
        label_N=label_N,
        title_chars_N=title_chars_N,
        table_pairs_N=table_pairs_N,
    )


def tables(statistics: Statistics) -> str:
    """All tables as text."""
    parts = [
        _presence_table(statistics.manifest),
        _pattern_table(statistics.manifest),
        _category_table(statistics),
        _attribute_table(statistics),
        _quantile_table("title length, characters", statistics.split_N, statistics.title_chars_N),
    ]
    return "\n\n".join(parts) + "\n"


def _grid(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A table with a left-aligned first column and right-aligned others."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join([title, *lines])


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _presence_table(manifest: Manifest) -> str:
    rows = []
    for name, split in manifest.splits.items():
        counts = [
            sum(count for pattern, count in split.presence_patterns.items() if modality in pattern.split("+"))
            for modality in manifest.modalities
        ]
        whole = split.presence_patterns.get("+".join(manifest.modalities), 0)
        rows.append([name, str(split.num_products), *map(str, counts), str(whole)])
    total = ["all", *(str(sum(int(row[i]) for row in rows)) for i in range(1, len(rows[0])))]
    return _grid("products with each modality", ["split", "products", *manifest.modalities, "complete"], [*rows, total])


def _pattern_table(manifest: Manifest) -> str:
    patterns = all_patterns(manifest)
    products = sum(patterns.values())
    rows = [[pattern or "(none)", str(count), _percent(count, products)] for pattern, count in patterns.items()]
    return _grid("presence patterns", ["pattern", "products", "share"], rows)


def all_patterns(manifest: Manifest) -> dict[str, int]:
    """Presence patterns over all splits, most frequent first."""
    total: dict[str, int] = {}
    for split in manifest.splits.values():
        for pattern, count in split.presence_patterns.items():
            total[pattern] = total.get(pattern, 0) + count
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _category_table(statistics: Statistics) -> str:
    sizes = statistics.category_sizes
    products = int(sizes.sum())
    unknown = int((statistics.label_N < 0).sum())
    rows = [
        ["categories", str(len(sizes))],
        ["products without a category", str(unknown)],
    ]
    if len(sizes):
        cumulative = np.cumsum(sizes)
        rows += [
            ["largest / median / mean", f"{sizes[0]} / {np.median(sizes):g} / {sizes.mean():.1f}"],
            ["categories of at most 10 products", str(int((sizes <= 10).sum()))],
            ["Gini coefficient", f"{gini(sizes):.2f}"],
        ]
        for share in _HEAD_SHARES:
            head = max(1, round(len(sizes) * share / 100))
            rows.append([f"products in the top {share} % of categories", _percent(int(cumulative[head - 1]), products)])
        counts = np.bincount(statistics.label_N[statistics.label_N >= 0], minlength=len(statistics.manifest.categories))
        top = np.argsort(-counts, kind="stable")[:_MOST_SHOWN]
        rows += [[f"  {statistics.manifest.categories[label]}", str(int(counts[label]))] for label in top]
    return _grid("category long tail", ["what", "value"], rows)


def gini(sizes: NDArray[np.int64]) -> float:
    """Gini coefficient of category sizes: 0 all equal, towards 1 all products in one."""
    ascending = np.sort(sizes).astype(np.float64)
    rank = np.arange(1, len(ascending) + 1)
    return float(
        2 * (rank * ascending).sum() / (len(ascending) * ascending.sum()) - (len(ascending) + 1) / len(ascending)
    )


def _attribute_table(statistics: Statistics) -> str:
    products = len(statistics.label_N)
    attributes = statistics.manifest.attributes
    rows = [
        [f"  {key}", str(count), _percent(count, products)] for key, count in list(attributes.items())[:_MOST_SHOWN]
    ]
    common = _grid(f"attribute keys: {len(attributes)}, most common", ["key", "products", "share"], rows)
    per_product = _quantile_table("attributes per product", statistics.split_N, statistics.table_pairs_N)
    return f"{per_product}\n\n{common}"


def _quantile_table(title: str, split_N: NDArray[np.str_], value_N: NDArray[np.int64]) -> str:
    rows = []
    for split in [*dict.fromkeys(split_N.tolist()), "all"]:
        values = value_N if split == "all" else value_N[split_N == split]
        rows.append([split, f"{values.mean():.1f}", *(f"{q:g}" for q in np.percentile(values, _QUANTILES))])
    return _grid(title, ["split", "mean", *(f"p{q}" for q in _QUANTILES)], rows)


def plots(statistics: Statistics, directory: Path) -> list[Path]:
    """Draw the tables as PNG files in `directory`, which is made if need be; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    written = []

    def save(name: str) -> None:
        pyplot.tight_layout()
        pyplot.savefig(directory / f"{name}.png", dpi=120, metadata={"Software": None})
        pyplot.close()
        written.append(directory / f"{name}.png")

    patterns = all_patterns(statistics.manifest)
    pyplot.figure(figsize=(7, 0.35 * len(patterns) + 1.5))
    pyplot.barh([pattern or "(none)" for pattern in patterns][::-1], list(patterns.values())[::-1])
    pyplot.xlabel("products")
    pyplot.title("Presence patterns")
    save("presence_patterns")

    sizes = statistics.category_sizes
    pyplot.figure(figsize=(6, 4))
    pyplot.plot(np.arange(1, len(sizes) + 1), sizes, marker=".")
    if len(sizes):
        pyplot.xscale("log")
        pyplot.yscale("log")
    pyplot.xlabel("category, by rank")
    pyplot.ylabel("products")
    pyplot.title("Category long tail")
    save("category_long_tail")

    for name, label, value_N in (
        ("attributes_per_product", "attributes per product", statistics.table_pairs_N),
        ("title_lengths", "title length, characters", statistics.title_chars_N),
    ):
        pyplot.figure(figsize=(6, 4))
        limit = max(1, int(np.percentile(value_N, 99.5)))
        step = -(-(limit + 1) // 50)
        pyplot.hist(np.minimum(value_N, limit), bins=(np.arange(0, limit + step + 1, step) - 0.5).tolist())
        pyplot.xlabel(f"{label} (above {limit}: at {limit})")
        pyplot.ylabel("products")
        save(name)
    return written
