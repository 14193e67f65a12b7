"""A catalogue and a model small enough for tests that run the whole job."""

import json
import shutil
from pathlib import Path

from m5ds.config import DataConfig, TokenizerConfig
from m5ds.data.catalogue.quickstart import SHARDS, TOKENIZER, prepare_quickstart
from m5ds.data.tokenizer import load_tokenizer

MODEL = [
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.ffn_dim=64",
    "model.projection_dim=32",
    "train.global_batch_size=16",
    "train.validation_batch_size=16",
    "train.log_every=1",
]


class SmallData:
    """Shards and tokenizer of 96 synthetic products under a folder of the test session."""

    def __init__(self, root: Path) -> None:
        settings = DataConfig(quickstart_products=96, tokenizer=TokenizerConfig(vocab_size=700))
        built = prepare_quickstart(settings, root)
        self.root, self.shards, self.tokenizer = root, built / SHARDS, built / TOKENIZER
        self.vocab_size = load_tokenizer(self.tokenizer).vocab_size

    def arguments(
        self, output: Path, *more: str, shards: Path | None = None, steps: int = 12, vocab_size: int = 0
    ) -> list[str]:
        """The command line of a run of `steps` steps that writes to `output`."""
        return [
            *MODEL,
            f"train.total_steps={steps}",
            f"data.shards={shards or self.shards}",
            f"data.tokenizer.path={self.tokenizer}",
            f"data.tokenizer.vocab_size={vocab_size or self.vocab_size}",
            f"output_dir={output}",
            *more,
        ]

    def damaged(self, name: str) -> Path:
        """A copy of the shards to damage."""
        return Path(shutil.copytree(self.shards, self.root / name))


def recorded(directory: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """metrics.jsonl by step. Losses, norm and rate only: times differ from run to run."""
    found = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == kind:
            found[entry["step"]] = {
                name: value
                for name, value in entry.items()
                if name.startswith(("loss/", "optimizer/", "retrieval/", "category/", "contrastive/"))
            }
    return found
