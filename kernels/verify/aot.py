"""Compile every shipped kernel configuration to machine code without a GPU or driver, and report what it costs.

    python kernels/verify/aot.py [--targets sm_80,sm_90,sm_100] [--op NAME] [--match TEXT] [--jobs N] [--markdown]

One row per configuration: registers and spilled bytes a thread, shared memory and occupancy of a block, the class of
matrix instruction. Exits 1 where a configuration spills, does not fit a multiprocessor, or does not compile. Triton
keeps what it compiled (TRITON_CACHE_DIR, default ~/.triton/cache), so an interrupted run goes on where it stopped.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from m5ds.kernels.common.configuration import Configuration
from m5ds.kernels.common.tiles import ARCHITECTURES

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Shared memory that one block may use (CUDA C programming guide, compute capabilities)."""
_RESERVED_SHARED_BYTES = 1024
_MAX_WARPS, _MAX_BLOCKS, _REGISTERS = 64, 32, 65536
_MMA_CLASSES = {"tcgen05.mma": "UTCHMMA", "wgmma.mma_async": "HGMMA", "mma.sync": "HMMA"}


@dataclass(frozen=True)
class Report:
    """What one configuration became. `error` is empty where it compiled."""

    target: str
    op: str
    kernel: str
    variant: str
    num_warps: int
    num_stages: int
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    mma: str = "FMA"
    error: str = ""

    @property
    def occupancy(self) -> float:
        """Resident warps over the multiprocessor's limit."""
        registers_per_warp = -(-max(self.registers, 1) * 32 // 256) * 256
        shared = max(self.shared_bytes + _RESERVED_SHARED_BYTES, 1)
        blocks = min(
            _MAX_BLOCKS,
            _MAX_WARPS // self.num_warps,
            _REGISTERS // (registers_per_warp * self.num_warps),
            (SHARED_BYTES[self.target] + _RESERVED_SHARED_BYTES) // shared,
        )
        return blocks * self.num_warps / _MAX_WARPS

    @property
    def fault(self) -> str:
        """Why this configuration must not ship; empty where it may."""
        if self.error:
            return self.error
        if self.spilled_bytes:
            return f"spills {self.spilled_bytes} bytes a thread"
        if self.occupancy == 0.0:
            return f"{self.shared_bytes} bytes of shared memory or {self.registers} registers do not fit"
        return ""


def ops() -> list[str]:
    """Every op that lists configurations: folders of kernels/ with a configurations.py."""
    return sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/configurations.py"))


def shipped(op: str, target: str) -> list[Configuration]:
    """All configurations in which `op` is launched on `target`."""
    return importlib.import_module(f"m5ds.kernels.{op}.configurations").configurations(target)


def compile_configuration(configuration: Configuration, target: str) -> Report:
    """Compile one configuration for `target` (`sm_90`); a compiler error becomes the report's `error`."""
    known = (target, configuration.op, configuration.kernel, configuration.variant)
    launch = (configuration.num_warps, configuration.num_stages)
    names = configuration.function.arg_names
    source = ASTSource(
        configuration.function,
        {name: configuration.signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in configuration.constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in configuration.divisible},
    )
    try:
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32),
            options={"num_warps": launch[0], "num_stages": launch[1]},
        )
    except Exception as error:  # the compiler raises whatever it likes; every kind is a row of the table
        return Report(*known, *launch, error=f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}")
    registers, stack = _resources(compiled.asm["cubin"])
    mma = next((name for text, name in _MMA_CLASSES.items() if text in compiled.asm["ptx"]), "FMA")
    return Report(*known, *launch, registers, stack, compiled.metadata.shared, mma)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread. Triton kernels keep nothing on the stack but spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{field}:(\d+)", usage).group(1)) for field in ("REG", "STACK"))


@cache
def _find(op: str, target: str) -> dict[tuple[str, str], Configuration]:
    return {(c.kernel, c.variant): c for c in shipped(op, target)}


def _compile_named(name: tuple[str, str, str, str]) -> Report:
    """In a worker: jit functions do not travel between processes, names do."""
    target, op, kernel, variant = name
    return compile_configuration(_find(op, target)[kernel, variant], target)


def compile_all(targets: Iterable[str], chosen_ops: Iterable[str], match: str = "", jobs: int = 1) -> Iterator[Report]:
    """Reports of all configurations whose `kernel variant` contains `match`, in order."""
    names = [
        (target, op, c.kernel, c.variant)
        for target in targets
        for op in chosen_ops
        for c in shipped(op, target)
        if match in f"{c.kernel} {c.variant}"
    ]
    if jobs == 1:
        yield from map(_compile_named, names)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_compile_named, names, chunksize=4)


def _row(report: Report, separator: str) -> str:
    cells = (
        report.target,
        report.op,
        report.kernel,
        report.variant,
        f"{report.num_warps}x{report.num_stages}",
        str(report.registers),
        str(report.spilled_bytes),
        str(report.shared_bytes),
        f"{report.occupancy:.0%}" if not report.error else "-",
        report.mma,
    )
    return separator.join(cells)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(ARCHITECTURES), help="comma-separated, default: %(default)s")
    parser.add_argument("--op", choices=ops(), help="one op only; default: all")
    parser.add_argument("--match", default="", help="only configurations whose 'kernel variant' contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, default: %(default)s")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    targets = options.targets.split(",")
    if unknown := [target for target in targets if target not in ARCHITECTURES]:
        parser.error(f"--targets: unknown {', '.join(unknown)}; known: {', '.join(ARCHITECTURES)}")
    separator = " | " if options.markdown else "\t"
    header = ["target", "op", "kernel", "variant", "warpsxstages", "registers", "spills", "shared", "occupancy", "MMA"]
    print(separator.join(header))
    if options.markdown:
        print(separator.join("---" for _ in header))
    faults, count = [], 0
    for report in compile_all(targets, [options.op] if options.op else ops(), options.match, options.jobs):
        print(_row(report, separator), flush=True)
        count += 1
        if report.fault:
            faults.append(f"{report.target} {report.op} {report.kernel} {report.variant}: {report.fault}")
    summary = f"{count} configurations, {len(faults)} faults"
    if options.markdown:
        print(f"\n{summary}; triton {triton.__version__}, {sum(os.times()[:4]):.0f} CPU seconds")
    print(summary, *faults, sep="\n", file=sys.stderr)
    return 1 if faults or not count else 0


if __name__ == "__main__":
    sys.exit(main())
