"""Bars of a benchmark CSV: one picture per op and device, forward and backward by provider.

Median milliseconds, or MiB where the op measures memory.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path


def draw(source: Path, folder: Path) -> list[Path]:
    """Write `<op>-<device>.png` for what the CSV holds; the latest row of equal ones counts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with source.open() as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] == "both"]
    measured = {row["op"]: "peak_mib" if row["op"].endswith("_memory") else "p50_ms" for row in rows}
    units = {"peak_mib": "MiB", "p50_ms": "ms (median)"}
    pictures: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        label = ", ".join(str(value) for value in json.loads(row["parameters"]).values())
        pictures[row["op"], row["device"]][row["provider"]][label] = float(row[measured[row["op"]]])
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for (op, device), providers in pictures.items():
        labels = list(dict.fromkeys(label for times in providers.values() for label in times))
        figure, axes = pyplot.subplots(figsize=(max(6.0, 0.5 * len(labels) * len(providers)), 5.0))
        for i, (provider, times) in enumerate(providers.items()):
            places = [j + i / (len(providers) + 1) for j in range(len(labels))]
            axes.bar(places, [times.get(label, 0.0) for label in labels], 1 / (len(providers) + 1), label=provider)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        axes.set_yscale("log")
        axes.set_ylabel(f"forward and backward, {units[measured[op]]}")
        axes.set_title(f"{op} on {device}", fontsize=9)
        axes.legend()
        figure.tight_layout()
        written.append(folder / f"{op}-{'-'.join(device.split())}.png".replace("/", "-"))
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
