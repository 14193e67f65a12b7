"""The Markdown tables of docs/kernels.md, made from the benchmarks' CSVs; the latest of equal rows counts.

In a page a table lies between `<!-- table NAME -->` and `<!-- end of table -->`.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from m5ds.kernels.benchmarks.cross_modal_attention import closed_form
from m5ds.kernels.benchmarks.results import Row, read_rows

Found = dict[tuple, dict[str, Row]]
PACKING_COLUMNS = ("lengths", "presence", "packed_s", "padded_s", "speed_up", "token_ratio", "share")
_CLOSED_FORM = (
    ("paper", 1.0, "identity", "fwd"),
    ("paper", 1.0, "all", "fwd"),
    ("paper", 0.5, "all", "fwd"),
    ("raw", 1.0, "all", "fwd"),
    ("raw", 0.5, "all", "bwd_dkdv"),
)


def tables_of(paths: Iterable[Path]) -> dict[str, str]:
    """Markdown by table name. `ValueError` where a file is neither kind of CSV."""
    tables = {"attention-closed-form": _closed_form()}
    for path in paths:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if set(PACKING_COLUMNS) <= set(header):
            tables["packing"] = _packing(path)
        else:
            rows, machine = read_rows(path)
            of_op = {op: [row for row in rows if row.op == op and row.mode == "both"] for op in {r.op for r in rows}}
            for name, (op, make) in _TABLES.items():
                if op in of_op:
                    tables[name] = make(of_op[op]) + f"\n\n`{path}`, op `{op}`, mode `both`: {machine}."
    return tables


def fill_page(page: Path, tables: dict[str, str]) -> None:
    """Replace the page's tables. `ValueError` where a table has no place in it."""
    text = page.read_text()
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page}: no '<!-- table {name} -->' ... '<!-- end of table -->' to put the table in")
        text = pattern.sub(lambda found, table=table: found[1] + table + found[2], text)
    page.write_text(text)


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by(rows: list[Row], *names: str) -> Found:
    """Rows by the values of parameters, then by provider."""
    found: Found = {}
    for row in rows:
        found.setdefault(tuple(row.parameters[name] for name in names), {})[row.provider] = row
    return found


def _ours(found: dict[str, Row]) -> Row:
    return next(row for provider, row in found.items() if provider.startswith(("packed", "fused", "streaming")))


def _attention(rows: list[Row]) -> str:
    found = _by(rows, "lengths", "presence", "visibility")

    def lines() -> Iterator[list[str]]:
        for lengths, presence in dict.fromkeys(key[:2] for key in found):
            seen = {v: cell for (n, p, v), cell in found.items() if (n, p) == (lengths, presence)}
            peer = next(iter(reversed(seen.values())))
            slowest = max(_ours(cell).p50_ms / cell["padded SDPA"].p50_ms for cell in seen.values())
            ours = [f"{_ours(seen[v]).p50_ms:.1f}" if v in seen else "" for v in ("identity", "all", "off_diagonal")]
            peers = [f"{peer[name].p50_ms:.1f}" for name in ("padded SDPA", "padded unfused")]
            products = f"{peer['padded SDPA'].parameters['products']} products"
            yield [f"{lengths}, {products}", f"{presence:.0%}", *ours, *peers, f"{slowest:.2f}"]

    header = (
        "rows",
        "presence",
        "identity",
        "all",
        "off-diagonal",
        "padded SDPA",
        "padded unfused",
        "slowest of ours / SDPA",
    )
    return _markdown(header, lines())


def _embedding(rows: list[Row]) -> str:
    lines = []
    for (lengths, presence), cell in _by(rows, "lengths", "presence").items():
        ours, peer = _ours(cell), cell["unfused torch"]
        size = f"{lengths}, {ours.parameters['products']} products, {ours.parameters['width']} wide"
        times = (f"{ours.p50_ms:.1f}", f"{peer.p50_ms:.1f}", f"{peer.p50_ms / ours.p50_ms:.2f}")
        lines.append([size, f"{presence:.0%}", *times])
    return _markdown(("rows", "presence", "torch path", "unfused torch", "unfused / ours"), lines)


def _contrastive(rows: list[Row]) -> str:
    lines = []
    for (products, pairs, presence), cell in _by(rows, "products", "pairs", "presence").items():
        ours, dense = _ours(cell).p50_ms, cell["dense InfoNCE"].p50_ms
        lines.append([f"{products}, {pairs}", f"{presence:.0%}", f"{ours:.1f}", f"{dense:.1f}", f"{dense / ours:.2f}"])
    return _markdown(("products, pairs", "presence", "streaming", "dense", "dense / streaming"), lines)


def _memory(rows: list[Row]) -> str:
    found = _by(rows, "products")
    providers = list(dict.fromkeys(provider for cell in found.values() for provider in cell))
    lines = [
        [f"{products:,}", *(f"{cell[name].peak_mib:.1f}" if name in cell else "" for name in providers)]
        for (products,), cell in sorted(found.items())
    ]
    return _markdown(("products", *(f"{name}, MiB" for name in providers)), lines)


_TABLES = {
    "attention-cpu": ("cross_modal_attention", _attention),
    "embedding-cpu": ("embed_modalities", _embedding),
    "contrastive-cpu": ("presence_contrastive", _contrastive),
    "contrastive-memory": ("contrastive_memory", _memory),
}


def _packing(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    latest = {(row["lengths"], row["presence"]): row for row in rows}
    lines = [[row[name] for name in PACKING_COLUMNS] for row in latest.values()]
    header = ("rows", "presence", "packed s", "padded s", "speed-up", "token ratio", "share of it")
    last = rows[-1]
    machine = f"{last['cpu']}, {last['threads']} thread, torch {last['torch']}, {last['date']}"
    size = f"width {last['width']}, {last['products']} products, medians of {last['repeats']}"
    return _markdown(header, lines) + f"\n\n`{path}`, {size}: {machine}."


def _closed_form() -> str:
    lines = []
    for lengths, presence, visibility, kernel in _CLOSED_FORM:
        estimate = next(e for e in closed_form(lengths, presence, visibility) if e.launch.startswith(f"{kernel} "))
        microseconds, limit = estimate.bound_us("H100-SXM")
        moved = f"{estimate.bytes / 2**20:.0f} / {estimate.minimum_bytes / 2**20:.0f} MiB"
        intensity = f"{estimate.flops / estimate.minimum_bytes:.0f}"
        name = f"{lengths}, {presence:.0%} present"
        lines.append([name, visibility, estimate.launch, moved, intensity, f"{microseconds:.0f} us, {limit}"])
    header = (
        "rows",
        "visibility",
        "launch",
        "bytes moved if nothing is cached / at least",
        "FLOP per byte",
        "bound on an H100",
    )
    return _markdown(header, lines)
