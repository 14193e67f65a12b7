"""What a run shows and records: progress bar, TensorBoard scalars and `metrics.jsonl`, all on rank 0.

`metrics.jsonl` holds one object a logged step or validation, `{"step": n, "kind": "train" or "validation", name:
value}` after n updates. A resumed run first drops what was recorded after the step that it goes on from.
"""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from m5ds.files import read_lines, write_atomically
from m5ds.train import distributed

METRICS = "metrics.jsonl"


class Monitor:
    """Use as a context manager. On ranks other than 0 every method does nothing."""

    def __init__(self, directory: Path, *, first_step: int, total_steps: int) -> None:
        self.enabled = distributed.rank() == 0
        self.path = directory / METRICS
        self.records: list[dict[str, Any]] = []
        if not self.enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.records = [record for record in read_lines(self.path) if record["step"] <= first_step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = self.path.open("a", buffering=1)
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1, flush_secs=30)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10,
            smoothing=0.1,
        )

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self._bar.close()
            self._writer.close()
            self._file.close()

    def advance(self, **shown: str) -> None:
        """One more step is done; `shown` stands behind the bar."""
        if self.enabled:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(1)

    def record(self, step: int, kind: str, scalars: dict[str, float]) -> None:
        """Write scalars of one step. `kind` is `train` or `validation`; TensorBoard groups them by it."""
        if not self.enabled:
            return
        entry = {"step": step, "kind": kind, **scalars}
        self.records.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        for name, value in scalars.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def say(self, message: str) -> None:
        """A line for the user that does not tear the bar."""
        if self.enabled:
            self._bar.clear()
            print(message, flush=True)
            self._bar.refresh()

    def first_and_last(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The first and the last record of that kind over the whole run, resumed parts included."""
        chosen = [record for record in self.records if record["kind"] == kind]
        return (chosen[0], chosen[-1]) if chosen else None
