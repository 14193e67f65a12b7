"""Catalogue to shards: WebDataset tars, an index for each, and the manifest last (layout: docs/architecture.md).

Two builds of one catalogue give the same bytes. A build that was cut off leaves no manifest; running it again keeps the
shards that were finished if nothing they depend on has changed, and writes the rest.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from m5ds import modality
from m5ds.data.catalogue.records import CatalogueOptions, dumps, media_root, read_catalogue
from m5ds.data.shards.manifest import MANIFEST_VERSION, SPLITS, Manifest, ShardEntry, SplitEntry
from m5ds.data.shards.plan import ContentGrouping, ShardPlan, make_plan, read_spooled
from m5ds.data.shards.shared_media import PLACEHOLDER_PRODUCTS
from m5ds.data.shards.writer import WrittenShard, write_shard
from m5ds.files import PART, locked, sha256, sha256_of_file, write_atomically

MISSING_MEDIA_FILE = "missing_media.jsonl"
_WORK = ".build"
_STAMP = "build"
_KEY_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How a catalogue becomes shards."""

    catalogue: CatalogueOptions = field(default_factory=CatalogueOptions)
    ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, validation and test; a split of share 0 is not built."""
    shard_products: int = 1000
    """Largest number of products of a shard; shards of a split are equal to within one product."""
    seed: int = 0
    """Of the split and of the order of products."""
    max_media_per_modality: int | None = None
    """Keep the first so many files of each modality."""
    audio_from_video: bool = False
    """Declare audio for a product without an audio file whose clip has a sound stream; the member is the clip."""
    group_by_content: bool = False
    """Products that share byte-equal media stay in one split, as those of one group do."""
    placeholder_products: int = PLACEHOLDER_PRODUCTS
    """A content of more products than this is a placeholder: nothing is grouped by it."""

    def __post_init__(self) -> None:
        if len(self.ratios) != 3 or not min(self.ratios) >= 0 or not abs(sum(self.ratios) - 1) <= 1e-6:
            raise ValueError(
                f"ratios must be three shares (train, validation, test) that add up to 1, got {self.ratios}"
            )
        if self.shard_products < 1:
            raise ValueError(f"shard_products must be at least 1, got {self.shard_products}")
        if self.max_media_per_modality is not None and self.max_media_per_modality < 1:
            raise ValueError(f"max_media_per_modality must be at least 1, got {self.max_media_per_modality}")

        if self.placeholder_products < 1:
            raise ValueError(f"placeholder_products must be at least 1, got {self.placeholder_products}")

    def recorded(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {
            "ratios": list(self.ratios),
            "shard_products": self.shard_products,
            "seed": self.seed,
            "max_media_per_modality": self.max_media_per_modality,
            "audio_from_video": self.audio_from_video,
            "group_by_content": self.group_by_content,
            "placeholder_products": self.placeholder_products,
            "language": self.catalogue.language,
            "missing_media": self.catalogue.missing_media,
        }


def build_shards(
    catalogue: str | Path,
    directory: str | Path,
    options: BuildOptions | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Manifest:
    """Build the shards of a catalogue in a local directory; returns the manifest that was written last.

    `ValueError` where the directory holds a finished build (unless `overwrite`) or something else; CatalogueError for
    whatever is wrong with the catalogue. `progress` draws a bar on stderr.
    """
    catalogue, directory, options = Path(catalogue), Path(directory), options or BuildOptions()
    if (directory / "manifest.json").exists() and not overwrite:
        raise ValueError(f"{directory}: holds finished shards; pass --overwrite to build them again")
    work = directory / _WORK
    foreign = directory.is_dir() and any(directory.iterdir())
    if foreign and not work.is_dir() and not (directory / "manifest.json").exists():
        raise ValueError(f"{directory}: is not empty and holds no shards; name a new directory with --out")
    work.mkdir(parents=True, exist_ok=True)
    with _only_builder(work):
        plan = _plan(catalogue, directory, options, progress)
        if (directory / "manifest.json").exists():  # finished shards are never taken over, whatever a note says of them
            (work / _STAMP).unlink(missing_ok=True)
            (directory / "manifest.json").unlink()
        _forget_other_builds(directory, plan, options)
        splits = _write_splits(catalogue, directory, plan, options, progress)
        manifest = Manifest(
            version=MANIFEST_VERSION,
            modalities=modality.names(),
            splits=splits,
            categories=plan.categories,
            attributes=plan.attributes,
            # Folder and file only, so that the manifest's hash does not depend on where the catalogue was mounted.
            source={"catalogue": "/".join(catalogue.absolute().parts[-2:]), "sha256": sha256_of_file(catalogue)},
            group_key=options.catalogue.group_key,
            options=options.recorded(),
            missing_media=_settle_missing_list(directory),
        )
        write_atomically(directory / "manifest.json", manifest.to_bytes())
        shutil.rmtree(work)
    return manifest


def _plan(catalogue: Path, directory: Path, options: BuildOptions, progress: bool) -> ShardPlan:
    records = read_catalogue(catalogue, options.catalogue)
    return make_plan(
        tqdm(records, desc="checking records", unit=" products", disable=not progress),
        directory / _WORK / "records.jsonl",
        directory / _WORK / MISSING_MEDIA_FILE,
        ratios=options.ratios,
        shard_products=options.shard_products,
        seed=options.seed,
        group_key=options.catalogue.group_key,
        language=options.catalogue.language,
        max_media=options.max_media_per_modality,
        content=ContentGrouping(
            media_root=media_root(catalogue, options.catalogue), placeholder_products=options.placeholder_products
        )
        if options.group_by_content
        else None,
    )


def _write_splits(
    catalogue: Path, directory: Path, plan: ShardPlan, options: BuildOptions, progress: bool
) -> dict[str, SplitEntry]:
    work = directory / _WORK
    root = media_root(catalogue, options.catalogue)
    splits: dict[str, SplitEntry] = {}
    first = 0
    with (
        tqdm(total=plan.num_products, desc="writing shards", unit=" products", disable=not progress) as bar,
        (work / "records.jsonl").open("rb") as spool,
    ):

        def products(members: NDArray[np.int64], first: int) -> Iterator[tuple[str, dict[str, Any], int]]:
            for number, product in enumerate(members.tolist(), start=first):
                yield (
                    f"{number:0{_KEY_DIGITS}d}",
                    read_spooled(spool, plan.offset_N[product]),
                    int(plan.label_N[product]),
                )
                bar.update()

        for split, shards in plan.shards.items():
            entries: list[ShardEntry] = []
            patterns: Counter[str] = Counter()
            for number, members in enumerate(shards):
                name = f"{split}/{number:06d}"
                written = _finished(directory, name)
                if written is None:
                    written = write_shard(
                        directory, name, products(members, first), root, audio_from_video=options.audio_from_video
                    )
                    _note_finished(directory, written)
                else:
                    bar.update(len(members))
                first += len(members)
                entries.append(written.entry)
                patterns += written.presence_patterns
            splits[split] = SplitEntry(
                num_products=sum(entry.num_products for entry in entries),
                shards=tuple(entries),
                presence_patterns=dict(sorted(patterns.items(), key=lambda item: (-item[1], item[0]))),
            )
    return splits


def _note_path(directory: Path, name: str) -> Path:
    return directory / _WORK / f"{name.replace('/', '-')}.json"


def _note_finished(directory: Path, written: WrittenShard) -> None:
    note = {"entry": asdict(written.entry), "presence_patterns": written.presence_patterns}
    write_atomically(_note_path(directory, written.entry.name), dumps(note))


def _finished(directory: Path, name: str) -> WrittenShard | None:
    """What an earlier run of this very build noted of a shard, if the shard is still there."""
    note = _note_path(directory, name)
    if not note.is_file():
        return None
    tree = json.loads(note.read_text())
    entry = ShardEntry(**tree["entry"])
    tar, index = directory / entry.tar, directory / entry.index
    if not tar.is_file() or not index.is_file() or tar.stat().st_size != entry.bytes:
        return None
    return WrittenShard(entry=entry, presence_patterns=Counter(tree["presence_patterns"]))


def _forget_other_builds(directory: Path, plan: ShardPlan, options: BuildOptions) -> None:
    """Unless the working folder belongs to this very build, remove all shards and notes that are there."""
    state = [plan.spool_sha256, options.recorded(), modality.names(), MANIFEST_VERSION]
    mine = sha256(dumps(state).encode())
    stamp = directory / _WORK / _STAMP
    if not stamp.is_file() or stamp.read_text() != mine:
        for note in (directory / _WORK).glob("*-*.json"):
            note.unlink()
        for split in SPLITS:
            for pattern in ("*.tar", "*.index.parquet"):
                for path in (directory / split).glob(pattern):
                    path.unlink()
        write_atomically(stamp, mine)
    for split in SPLITS:
        for path in (directory / split).glob(f"*{PART}"):
            path.unlink()


def _settle_missing_list(directory: Path) -> int:
    """Move the list of missing files beside the manifest if there is any; returns how many there are."""
    listed, final = directory / _WORK / MISSING_MEDIA_FILE, directory / MISSING_MEDIA_FILE
    final.unlink(missing_ok=True)
    with listed.open("rb") as file:
        count = sum(1 for _ in file)
    if count:
        listed.replace(final)
    return count


@contextmanager
def _only_builder(work: Path) -> Iterator[None]:
    """Refuse to build in a directory in which another process is building."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(work / "lock", wait=False))
        except BlockingIOError:
            raise ValueError(f"{work.parent}: another process is building shards here; wait for it or end it") from None
        yield
