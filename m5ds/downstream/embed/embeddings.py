"""Sets of product embeddings and their Parquet form.

```
EMB/embeddings.json      what the vectors are: model, data, split, modalities, operation, width, number of products
EMB/000000.parquet       id string, vector fixed_size_list<float>, label int64, presence list<string>, group string
```
File n holds the products at positions [n * shard_size, (n + 1) * shard_size) of the split, so that any number of ranks
can write them and a killed job goes on with the files that are missing.

Shape letters: N products, D width, M modalities.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from m5ds import modality
from m5ds.files import write_atomically, writing
from m5ds.model.summaries import OPERATIONS

STATES = ("fused", "contrastive", "dense")
_INFO = "embeddings.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddingInfo:
    """What makes two sets of vectors comparable, and the set complete."""

    model: str
    """Fingerprint of the weights that made the vectors."""
    data: str
    """sha256 of the shards' manifest."""
    split: str
    model_modalities: tuple[str, ...]
    """The model's modalities in table order; `presence` speaks of these."""
    modalities: tuple[str, ...]
    """The subset that was shown to the model, in table order."""
    states: str = "fused"
    """What was read: `fused` summaries, `contrastive` ones (before fusion), or a classifier's `dense` layer."""
    operation: str
    """How the modalities' summaries become one vector: `concat`, `mean` or `sum`."""
    normalized: bool
    """Whether each vector has L2 norm 1 (an empty product's is zero)."""
    width: int
    num_products: int
    shard_size: int = 1024

    def __post_init__(self) -> None:
        check_modalities(self.modalities, self.model_modalities)
        for field, known in (("states", STATES), ("operation", OPERATIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r}")

    @property
    def num_shards(self) -> int:
        return -(-self.num_products // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """N products' vectors. `group` names what may not be told apart (instances, shared pictures); "" where unknown."""

    info: EmbeddingInfo
    ids: tuple[str, ...]
    vector_ND: NDArray[np.float32]
    label_N: NDArray[np.int64]
    """Index into the manifest's categories, -1 where unknown."""
    present_NM: NDArray[np.bool_]
    """True = the product has the modality, in the order of `info.model_modalities`."""
    group: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.ids)
        expected = {
            "vectors": (self.vector_ND.shape, (count, self.info.width)),
            "labels": (self.label_N.shape, (count,)),
            "presence": (self.present_NM.shape, (count, len(self.info.model_modalities))),
            "groups": ((len(self.group),), (count,)),
        }
        for name, (shape, wanted) in expected.items():
            if shape != wanted:
                raise ValueError(f"embeddings: {name} have shape {shape}, expected {wanted}")
        if len(set(self.ids)) != count:
            twice = next(name for name, times in Counter(self.ids).items() if times > 1)
            raise ValueError(f"embeddings: product {twice!r} occurs twice; write them again into an empty folder")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def empty_N(self) -> NDArray[np.bool_]:
        """True where the product has none of the modalities that were shown: its vector says nothing."""
        columns = [self.info.model_modalities.index(name) for name in self.info.modalities]
        return np.logical_not(self.present_NM[:, columns].any(1))

    def by_id(self) -> "EmbeddingSet":
        """The products in the order of their ids: sums and ties then do not depend on the order of the shards."""
        return self.take(id_order(self.ids))

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> "EmbeddingSet":
        """The products of these rows (numbers or a mask), in that order."""
        numbers = np.arange(len(self))[rows]
        return EmbeddingSet(
            info=replace(self.info, num_products=len(numbers)),
            ids=tuple(self.ids[i] for i in numbers),
            vector_ND=self.vector_ND[numbers],
            label_N=self.label_N[numbers],
            present_NM=self.present_NM[numbers],
            group=tuple(self.group[i] for i in numbers),
        )


def id_order(ids: Sequence[str]) -> NDArray[np.int64]:
    """Row numbers in the order of the ids."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def check_modalities(chosen: Sequence[str], known: Sequence[str], key: str = "") -> tuple[str, ...]:
    """The subset in table order; `ValueError` for an empty one, or for a modality that the model lacks.

    `key`: the flag or the key of the YAML that named it, for the message.
    """
    where = f"{key}: " if key else ""
    if not chosen:
        raise ValueError(f"{where}modality subset is empty; name at least one of {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise ValueError(f"{where}modality {name!r} is not one of the model's: {', '.join(known)}")
    return modality.in_table_order(tuple(chosen))


def check_comparable(a: EmbeddingInfo, b: EmbeddingInfo) -> None:
    """`ValueError` unless vectors of both sets live in one space: same weights, operation, norm and width.

    The modality subsets may differ (text against image), unless the vectors are concatenations.
    """
    remedy = "embed both sets again with one checkpoint and the same options"
    if a.model != b.model:
        raise ValueError(f"embeddings of different models ({a.model[:12]} and {b.model[:12]}); {remedy}")
    for name in ("states", "operation", "normalized", "width"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(f"embeddings differ in {name} ({getattr(a, name)} and {getattr(b, name)}); {remedy}")
    if a.operation == "concat" and a.states != "dense" and set(a.modalities).isdisjoint(b.modalities):
        raise ValueError(
            f"concatenated embeddings of {'+'.join(a.modalities)} and {'+'.join(b.modalities)} share no modality, so"
            " every score is 0; embed with operation mean or sum"
        )


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}.parquet"


def start_writing(directory: Path, info: EmbeddingInfo) -> list[int]:
    """Make the folder ready and return the numbers of the shards still to be written.

    `ValueError` where the folder already holds embeddings of something else. Every rank may call it after rank 0 did.
    """
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file; choose a folder for --out")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _INFO
    if path.exists():
        found = read_info(directory)
        for field in fields(EmbeddingInfo):
            old, new = getattr(found, field.name), getattr(info, field.name)
            if old != new:
                raise ValueError(
                    f"{path}: holds embeddings with {field.name} {old!r}, not {new!r}; choose another --out"
                )
    else:
        write_atomically(path, json.dumps(asdict(info), indent=1) + "\n")
    return [n for n in range(info.num_shards) if not shard_path(directory, n).exists()]


def write_shard(directory: Path, number: int, part: EmbeddingSet) -> None:
    """Write one file whole or not at all. `part` holds exactly the shard's products in position order."""
    info = part.info
    first = number * info.shard_size
    assert len(part) == min(info.shard_size, info.num_products - first), (len(part), number, info.num_products)
    names = np.array(info.model_modalities)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(part.vector_ND.astype(np.float32).ravel()), info.width)
    table = pa.table(
        {
            "id": pa.array(part.ids, pa.string()),
            "vector": vector,
            "label": pa.array(part.label_N, pa.int64()),
            "presence": pa.array([list(names[row]) for row in part.present_NM], pa.list_(pa.string())),
            "group": pa.array(part.group, pa.string()),
        }
    )
    with writing(shard_path(directory, number)) as file:
        pq.write_table(table, file)


def read_info(directory: str | Path) -> EmbeddingInfo:
    """What a folder of embeddings holds; `ValueError` where it is none."""
    path = Path(directory) / _INFO
    if not path.is_file():
        raise ValueError(f"{directory}: no {_INFO}; name a folder that tools/embed.py wrote")
    try:
        tree = json.loads(path.read_text())
        tree["model_modalities"], tree["modalities"] = tuple(tree["model_modalities"]), tuple(tree["modalities"])
        return EmbeddingInfo(**tree)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a description of embeddings ({error}); embed again") from error


def _tables(directory: Path, info: EmbeddingInfo) -> Iterator[pa.Table]:
    for number in range(info.num_shards):
        path = shard_path(directory, number)
        if not path.is_file():
            raise ValueError(f"{path}: missing; run the same tools/embed.py command again to finish the job")
        try:
            yield pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]}); delete it and embed again") from error


def read_embeddings(directory: str | Path) -> EmbeddingSet:
    """All products of a complete folder, in position order; `ValueError` names a missing or damaged file."""
    directory = Path(directory)
    info = read_info(directory)
    tables = list(_tables(directory, info))
    if not tables:
        raise ValueError(f"{directory}: holds no product")
    table = pa.concat_tables(tables).combine_chunks()
    if len(table) != info.num_products:
        raise ValueError(f"{directory}: holds {len(table)} products, expected {info.num_products}; embed again")
    names = info.model_modalities
    presence = table["presence"].to_pylist()
    return EmbeddingSet(
        info=info,
        ids=tuple(table["id"].to_pylist()),
        vector_ND=table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), info.width),
        label_N=table["label"].to_numpy(),
        present_NM=np.array([[name in has for name in names] for has in presence], dtype=bool),
        group=tuple(table["group"].to_pylist()),
    )
