"""The data of a run that names none: the synthetic catalogue, its shards and its tokenizer, built once and kept."""

import json
import logging
import shutil
import warnings
from pathlib import Path

from m5ds.config import DataConfig
from m5ds.data.catalogue import synthetic, synthetic_media
from m5ds.data.shards import records as shard_records
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import MANIFEST_VERSION
from m5ds.data.tokenizer import load_tokenizer, train_tokenizer
from m5ds.files import PART, locked, sha256, sync_folder

SHARDS, TOKENIZER, CATALOGUE = "shards", "tokenizer", "catalogue"
RATIOS = (0.83, 0.17, 0.0)
"""Train, validation, test. Of 1,600 products over 200 that have both video and audio are held out."""
_SHARD_PRODUCTS = 512
_LOGGER = logging.getLogger(__name__)


def prepare_quickstart(config: DataConfig, directory: str | Path) -> Path:
    """Build what `config` asks for under `directory` unless it is there, and return the folder that holds it.

    The folder has `catalogue/items.jsonl`, `shards/` and `tokenizer/`. Its name is a hash of the settings and of the
    generator's source, so other settings get a folder of their own. All ranks may call this: one process builds under a
    file lock, the others wait; a build that was cut off is begun again.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"quickstart-{_settings_hash(config)}"
    with locked(directory / "quickstart.lock", wait=True):
        if not target.is_dir():
            part = target.with_name(target.name + PART)
            shutil.rmtree(part, ignore_errors=True)
            _build(config, part)
            part.rename(target)
            sync_folder(directory)
    return target


def _build(config: DataConfig, directory: Path) -> None:
    _LOGGER.info("building the synthetic catalogue of %d products in %s", config.quickstart_products, directory)
    items = synthetic.make_catalogue(
        directory / CATALOGUE, config.quickstart_products, config.quickstart_seed, config.shuffle_pairs
    )
    manifest = build_shards(items, directory / SHARDS, BuildOptions(ratios=RATIOS, shard_products=_SHARD_PRODUCTS))
    if config.tokenizer.path is not None:
        load_tokenizer(config.tokenizer.path).save(directory / TOKENIZER)
        return
    records = shard_records.iterate_records(str(directory / SHARDS), manifest, "train")
    texts = (text for record in records for text in shard_records.sentences(record))
    with warnings.catch_warnings():
        # So small a catalogue carries fewer pieces than are asked for, which is no news to its user.
        warnings.simplefilter("ignore", UserWarning)
        # One thread: the same text then gives the same pieces on every machine.
        train_tokenizer(texts, config.tokenizer.vocab_size, directory / TOKENIZER, num_threads=1)


def _settings_hash(config: DataConfig) -> str:
    sources = [Path(str(module.__file__)).read_bytes() for module in (synthetic, synthetic_media, shard_records)]
    settings = [
        config.quickstart_products,
        config.quickstart_seed,
        config.shuffle_pairs,
        [config.tokenizer.kind, config.tokenizer.path, config.tokenizer.vocab_size],
        RATIOS,
        _SHARD_PRODUCTS,
        MANIFEST_VERSION,
        [sha256(source) for source in sources],
    ]
    return sha256(json.dumps(settings).encode())[:12]
