"""What a run reads: shards, tokenizer, loaders. Rank 0 makes what does not exist yet, the others wait and read it."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m5ds.config import RunConfig
from m5ds.data.batches.loader import Loader
from m5ds.data.catalogue.quickstart import SHARDS, TOKENIZER, prepare_quickstart
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.manifest import read_manifest
from m5ds.data.shards.reader import ShardReader
from m5ds.data.shards.records import iterate_records, sentences
from m5ds.data.tokenizer import Tokenizer, check_vocab, load_tokenizer, train_tokenizer
from m5ds.train import distributed

QUICKSTART = "quickstart"
DATA = Path("data")
"""Where the quickstart's catalogue goes, relative to the working directory as `output_dir` is."""
VERIFIED_BYTES = 2**30
"""Shards up to this size in all are hashed at every start; larger ones are compared by size (tools/lint_shards.py)."""
TOKENIZER_PRODUCTS = 200_000
"""A tokenizer that the run trains itself sees the first so many products (shards are shuffled)."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """One rank's readers. `validation` is None where the shards have no such split."""

    shards: str
    manifest_hash: str
    categories: tuple[str, ...]
    tokenizer: Tokenizer
    training: Loader
    validation: Loader | None

    def close(self) -> None:
        """Stop the loaders' threads."""
        self.training.close()
        if self.validation is not None:
            self.validation.close()


def shard_directory(config: RunConfig) -> str:
    """The shards to read; `quickstart` is built on first use, by one rank behind a lock. Collective."""
    if config.data.shards != QUICKSTART:
        return config.data.shards
    with distributed.stop_together():
        return str(prepare_quickstart(config.data, DATA) / SHARDS)


def run_tokenizer(config: RunConfig, shards: str, saved: Path | None, wanted_size: int | None) -> Tokenizer:
    """The tokenizer that the run owns: made by rank 0, the same on every rank. Collective.

    `saved` is the checkpoint's when the run resumes: it is used, and one that the configuration names must have its
    size. `wanted_size` is data.tokenizer.vocab_size where the configuration says it. Otherwise the named one is taken,
    or one is trained on the train split. ValueError names the mismatch.
    """
    tokenizer = None
    with distributed.stop_together():
        if distributed.rank() == 0:
            tokenizer = _tokenizer(config, shards, saved, wanted_size)
    return distributed.broadcast_object(tokenizer)


def _tokenizer(config: RunConfig, shards: str, saved: Path | None, wanted_size: int | None) -> Tokenizer:
    settings = config.data.tokenizer
    if saved is not None:
        tokenizer = load_tokenizer(saved)
        if settings.path is not None:
            check_vocab(load_tokenizer(settings.path), tokenizer.vocab_size, f"the checkpoint {saved.parent}")
        return tokenizer
    if settings.path is None:
        quickstart = Path(shards).parent / TOKENIZER
        return load_tokenizer(quickstart) if config.data.shards == QUICKSTART else _train(shards, settings.vocab_size)
    tokenizer = load_tokenizer(settings.path)
    if wanted_size not in (None, tokenizer.vocab_size):
        raise ValueError(
            f"data.tokenizer.path {settings.path} has {tokenizer.vocab_size} tokens but data.tokenizer.vocab_size is"
            f" {wanted_size}; name the other tokenizer or set data.tokenizer.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def _train(shards: str, vocab_size: int) -> Tokenizer:
    def texts() -> Iterator[str]:
        for record in iterate_records(shards, read_manifest(shards), "train", TOKENIZER_PRODUCTS):
            yield from sentences(record)

    with warnings.catch_warnings():
        # A small catalogue carries fewer pieces than asked for; the model takes the tokenizer's size.
        warnings.simplefilter("ignore")
        return train_tokenizer(texts(), vocab_size, num_threads=1)


def open_sources(
    config: RunConfig,
    shards: str,
    tokenizer: Tokenizer,
    choose: Callable[[ShardReader], ShardReader] = lambda reader: reader,
) -> Sources:
    """The loaders of this rank. Collective; ValueError, CorruptShardError or OSError of one rank stops all.

    `choose` may leave some of the training split's products out.
    """
    with distributed.stop_together():
        rank, world_size, train = distributed.rank(), distributed.world_size(), config.train
        decoder = Decoder()
        if train.validation_batch_size % world_size:
            raise ValueError(
                f"train.validation_batch_size {train.validation_batch_size} is not a multiple of the {world_size} ranks"
            )
        manifest = read_manifest(shards)
        size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
        verify: Literal["full", "size"] = "full" if rank == 0 and size <= VERIFIED_BYTES else "size"
        reader = choose(ShardReader(shards, "train", verify=verify))
        training = Loader(
            config.data,
            config.model.modalities,
            reader,
            tokenizer,
            decoder,
            seed=config.seed,
            global_batch_size=train.global_batch_size,
            accumulation=train.accumulation,
            rank=rank,
            world_size=world_size,
        )
        validation = None
        if "validation" in manifest.splits and manifest.split("validation").num_products:
            validation = Loader(
                config.data,
                config.model.modalities,
                ShardReader(shards, "validation", verify=verify),
                tokenizer,
                decoder,
                seed=config.seed,
                global_batch_size=train.validation_batch_size,
                rank=rank,
                world_size=world_size,
                training=False,
            )
    return Sources(
        shards=shards,
        manifest_hash=manifest.hash,
        categories=manifest.categories,
        tokenizer=tokenizer,
        training=training,
        validation=validation,
    )
