"""The one CSV that benchmarks append to: its columns, what identifies the machine, and how rows are read back."""

import csv
import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

_READ = (
    "op",
    "provider",
    "mode",
    "parameters",
    "p20_ms",
    "p50_ms",
    "p80_ms",
    "peak_mib",
    "device",
    "threads",
    "versions",
    "time",
)
"""Columns that `read_rows` needs; the roofline's came later and tables do without."""


@dataclass(frozen=True)
class Row:
    """One row, numbers rounded as they are written."""

    op: str
    provider: str
    mode: str
    """`forward`, `backward`, `both`."""
    parameters: dict[str, Any]
    p20_ms: float
    p50_ms: float
    p80_ms: float
    peak_mib: float
    """Memory beside the inputs; 0 where it was not measured."""
    moved_mib: float | None = None
    """What any implementation must read and write (`case.Work`); None, an empty cell, where the op has no roofline."""
    gflop: float | None = None
    copy_gb_s: float | None = None
    """The device's own rates in this run (`roofline.Ceilings`)."""
    matmul_tflop_s: float | None = None
    bound_ms: float | None = None
    """The slower of the two: bytes over the copy's rate, FLOPs over the matrix product's."""
    roofline_share: float | None = None
    """bound_ms over p50_ms: 1 is the device's best. Above 1 where the data stays in a cache."""


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return model[0].split(":", 1)[1].strip() if model else platform.processor()


def append_rows(path: Path, rows: list[Row], device: torch.device) -> None:
    """Append with device, threads, versions and UTC time."""
    stamp = {
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else "",
        "versions": f"torch {torch.__version__}, triton {triton.__version__}",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for row in rows:
        fields = {k: "" if v is None else v for k, v in vars(row).items()} | {"parameters": json.dumps(row.parameters)}
        append_csv(path, {k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()} | stamp)


def append_csv(path: Path, fields: dict[str, Any]) -> None:
    """Append one row to a CSV, with its header where the file is new. `ValueError` where it has other columns."""
    new = not path.exists() or path.stat().st_size == 0
    if not new:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
        if header != list(fields):
            raise ValueError(f"{path}: its columns are not those of this program; name another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(fields))
        if new:
            writer.writeheader()
        writer.writerow(fields)


def read_rows(path: Path) -> tuple[list[Row], str]:
    """All rows in order, and the last one's device, threads, versions and day. `ValueError` for another kind of CSV."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    if missing := set(_READ) - set(reader.fieldnames or ()):
        raise ValueError(f"{path}: not a CSV of kernels/benchmarks/run.py, it lacks {', '.join(sorted(missing))}")
    if not found:
        raise ValueError(f"{path}: no rows")
    rows = [
        Row(
            *(row[name] for name in ("op", "provider", "mode")),
            json.loads(row["parameters"]),
            *(float(row[name]) for name in ("p20_ms", "p50_ms", "p80_ms", "peak_mib")),
        )
        for row in found
    ]
    last = found[-1]
    threads = f"{last['threads']} thread, " if last["threads"] else ""
    return rows, f"{last['device']}, {threads}{last['versions']}, {last['time'][:10]}"
