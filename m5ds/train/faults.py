"""Damaged files: each is listed once per run in bad_media.jsonl, and too many stop the run on all ranks together.

Only rank 0 writes. The counts arrive with the step's one all-reduce, and the names are gathered only in steps where
some rank met a damaged file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m5ds.files import read_lines, write_atomically
from m5ds.train import distributed

MINIMUM_FILES = 1000
"""The budget is taken of at least this many files, so that one damaged file in the first step does not stop a run."""


class BadMediaBudget:
    """Counts of files read and of undecodable ones over all ranks, each time that they are read; and the list.

    A file that is read in every epoch counts in each for the budget, which compares it with all that was read. What is
    shown to people is the number of files in the list.
    """

    def __init__(self, path: Path, max_fraction: float, counts: tuple[int, int] = (0, 0)) -> None:
        """`path` is bad_media.jsonl; what it lists already (a resumed run) is not listed again.

        `counts` are (decoded, bad) up to the checkpoint that the run resumes from.
        """
        self.path, self.max_fraction = path, max_fraction
        self.num_decoded, self.num_bad = counts
        self._listed: dict[tuple[str, str], str] = {}
        if distributed.rank() == 0 and path.is_file():
            listed = [item for item in read_lines(path) if self._note(item)]
            # Written anew, since a line that a kill left torn would swallow the next one.
            write_atomically(path, _lines(listed))

    @property
    def num_listed(self) -> int:
        """Distinct damaged files, those of validation too; known to rank 0 only. What every report shows."""
        return len(self._listed)

    def update(self, *, num_decoded: int, num_bad: int, local: Iterable[Any]) -> None:
        """Take in one step: counts over all ranks (equal on each) and this rank's BadMedia records.

        Raises RankError on every rank when the budget is spent; its message lists the files.
        """
        self.num_decoded += num_decoded
        self.num_bad += num_bad
        if num_bad == 0:
            return
        self.note(local)
        if self.num_bad > self.max_fraction * max(self.num_decoded, MINIMUM_FILES):
            raise distributed.RankError(distributed.broadcast_object(self._verdict()))

    def note(self, local: Iterable[Any]) -> None:
        """List this rank's BadMedia records without counting them against the budget. Collective."""
        gathered = distributed.gather_objects([asdict(item) for item in local])
        if distributed.rank() == 0:
            fresh = [item for part in gathered for item in part if self._note(item)]
            if fresh:
                with self.path.open("a") as file:
                    file.write(_lines(fresh))

    def _note(self, item: dict[str, Any]) -> bool:
        key = (item["product_id"], item["member"])
        if key in self._listed:
            return False
        self._listed[key] = item["reason"]
        return True

    def _verdict(self) -> str:
        shown = [f"{product}/{member} ({reason})" for (product, member), reason in list(self._listed.items())[:20]]
        more = f" and {self.num_listed - 20} more" if self.num_listed > 20 else ""
        return (
            f"{self.num_bad} of {self.num_decoded} media files read could not be decoded ({self.num_listed} different"
            f" ones), more than data.max_bad_fraction"
            f" {self.max_fraction} allows (of at least {MINIMUM_FILES} files); repair or remove them, or raise the"
            f" fraction. {self.path} lists them: {', '.join(shown)}{more}"
        )


def _lines(items: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
