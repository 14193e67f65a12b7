"""Free queries against embeddings: text, pictures, clips, sounds and attributes become one product's vector."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m5ds import modality
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.catalogue.records import presence
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.downstream.embed.embeddings import EmbeddingInfo
from m5ds.downstream.embed.features import FeatureOptions, encode
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.kernels.common import philox


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the user gave. Files are read from disk."""

    text: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    files: dict[str, Path] = field(default_factory=dict)
    """Modality that lists files -> path."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the query shows, in no particular order."""
        return (*presence((), self.text, "", self.attributes), *self.files)

    def product(self) -> RawProduct:
        """The query as if it were a catalogue's product. `ValueError` for a file that is not there."""
        media = {}
        for name, path in self.files.items():
            if not path.is_file():
                raise ValueError(f"--{name} {path}: no such file")
            media[name] = [Media(path.name, path.read_bytes())]
        return RawProduct(
            id="query",
            product=philox.product_hash("query"),
            title=self.text,
            description="",
            attributes=list(self.attributes),
            category=[],
            label=-1,
            present=frozenset(self.modalities),
            media=media,
        )


def encode_query(pretrained: Pretrained, query: Query, info: EmbeddingInfo) -> NDArray[np.float32]:
    """[1, W]: the query's vector in the space of `info`'s embeddings.

    `ValueError`: nothing was asked, the model lacks a modality or is not the one that made the embeddings, or a file
    cannot be decoded.
    """
    if pretrained.fingerprint != info.model:
        raise ValueError(
            f"the embeddings were made by another model ({info.model[:12]}) than {pretrained.source}"
            f" ({pretrained.fingerprint[:12]}); pass the checkpoint that tools/embed.py read"
        )
    if not query.modalities:
        flags = ", ".join(f"--{row.name}" for row in modality.table() if row.lists_files)
        raise ValueError(f"nothing to search for: give at least one of --text, --attr, {flags}")
    for name in query.modalities:
        if name not in info.model_modalities:
            raise ValueError(f"--{name}: the model has no such modality, only {', '.join(info.model_modalities)}")
    spec = pretrained.model.spec
    maker = MicroBatchMaker(
        {name: spec.modalities[name].input for name in spec.modality_names}, pretrained.tokenizer, Decoder("cpu")
    )
    prepared = maker.make([query.product()], [philox.EVALUATION_DRAW])
    if prepared.bad_media:
        bad = prepared.bad_media[0]
        raise ValueError(f"{bad.member}: cannot be decoded: {bad.reason}")
    options = FeatureOptions(
        modalities=info.model_modalities, states=info.states, operation=info.operation, normalized=info.normalized
    )
    return encode(pretrained.model, prepared.batch, options, pretrained.head).numpy()
