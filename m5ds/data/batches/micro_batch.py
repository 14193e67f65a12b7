"""Raw products to a batch: choose files, hand them to the input kinds, assemble. Pure in products and draws.

Shape letters: B products, M modalities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.data.batches import augment
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.data.tokenizer import Tokenizer
from m5ds.inputs import InputSpec
from m5ds.inputs.base import MediaDecoder
from m5ds.inputs.keyed import Draws, Keys
from m5ds.inputs.media import BadMedia, MediaItem
from m5ds.inputs.rows import ProductRows, assemble
from m5ds.kernels.common import philox

_REMEMBERED_STRINGS = 1 << 16


@dataclass(kw_only=True)
class Prepared:
    """A batch and what its media cost."""

    batch: Batch
    bad_media: list[BadMedia]
    num_decoded: int
    """Files given to a decoder, the bad ones included."""


@dataclass(kw_only=True)
class _Record:
    """What happened to the files of one batch."""

    bad_media: list[BadMedia] = field(default_factory=list)
    num_decoded: int = 0


class _Tokens:
    """The tokenizer as input kinds take it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.cls_id, self.sep_id = tokenizer.cls_id, tokenizer.sep_id
        self.encode = tokenizer.encode
        # Keys and most values of tables repeat over and over; titles do not.
        self.encode_short = lru_cache(_REMEMBERED_STRINGS)(tokenizer.encode)


class MicroBatchMaker:
    """Makes batches of the given modalities. Safe to share among threads if the decoder is."""

    def __init__(
        self,
        specs: Mapping[str, InputSpec],
        tokenizer: Tokenizer,
        decoder: MediaDecoder,
        *,
        seed: int = 0,
        training: bool = False,
        random_crop: bool = True,
        modality_dropout: float = 0.0,
    ) -> None:
        """`specs`: input of each modality; batches keep table order. What is random: docs/data.md."""
        self._specs = {name: specs[name] for name in modality.in_table_order(tuple(specs))}
        self._numbers = {name: modality.get(name).number for name in self._specs}
        self._tokens = _Tokens(tokenizer)
        self._decoder = decoder
        self._seed = seed
        self._training = training
        self._random_crop = training and random_crop
        self._modality_dropout = modality_dropout if training else 0.0

    def make(self, products: Sequence[RawProduct | None], draws: Sequence[int]) -> Prepared:
        """The batch of these products; None stands for an empty one (id "", nothing present).

        `draws`: the epoch or mixture draw of each, or philox.EVALUATION_DRAW.
        """
        hashes = [philox.product_hash("") if product is None else product.product for product in products]
        keys = Keys(torch.tensor(hashes, dtype=torch.int64), torch.tensor(draws, dtype=torch.int64))
        wanted_BM = self._wanted(products, keys)
        record = _Record()
        modalities: dict[str, ModalityRows] = {}
        for m, (name, spec) in enumerate(self._specs.items()):
            chosen = {b: product for b, product in enumerate(products) if product is not None and wanted_BM[b, m]}
            found: Mapping[int, ProductRows | None]
            if spec.reads_files:
                found = self._rows_of_files(name, spec, chosen, keys, record)
            else:
                found = {b: spec.rows_of_record(product, self._tokens) for b, product in chosen.items()}
            in_order = [found.get(b) for b in range(len(products))]
            modalities[name] = assemble(in_order, spec.dim, spec.has_geometry)
        batch = Batch(
            ids=["" if product is None else product.id for product in products],
            product_B=keys.product_K,
            draw_B=keys.draw_K,
            label_B=torch.tensor([-1 if product is None else product.label for product in products], dtype=torch.int64),
            group_B=torch.tensor(
                [philox.product_hash("" if product is None else product.group) for product in products],
                dtype=torch.int64,
            ),
            present_BM=torch.stack([rows.length_B > 0 for rows in modalities.values()], dim=1),
            modalities=modalities,
        )
        return Prepared(batch=batch, bad_media=record.bad_media, num_decoded=record.num_decoded)

    def _wanted(self, products: Sequence[RawProduct | None], keys: Keys) -> Tensor:
        """bool [B, M]: declared and not dropped."""
        present_BM = torch.tensor(
            [[product is not None and name in product.present for name in self._specs] for product in products]
        )
        if self._modality_dropout == 0.0:
            return present_BM
        numbers = list(self._numbers.values())
        return augment.kept_modalities(keys, self._seed, numbers, present_BM, self._modality_dropout)

    def _rows_of_files(
        self, name: str, spec: InputSpec, chosen: dict[int, RawProduct], keys: Keys, record: _Record
    ) -> dict[int, ProductRows]:
        """Rows by the product's place in the batch: one file of each, and where it is bad the product's next ones."""
        number = self._numbers[name]
        files = {b: product.media.get(name, []) for b, product in chosen.items()}
        files = {b: media for b, media in files.items() if media}
        if self._training and files:
            counts = [len(media) for media in files.values()]
            first = augment.first_files(keys.take(list(files)), self._seed, number, counts)
            files = {b: media[f:] + media[:f] for (b, media), f in zip(files.items(), first, strict=True)}
        found: dict[int, ProductRows] = {}
        attempt = 0
        while files:
            owners = list(files)
            items = [_item(chosen[b], files[b][attempt]) for b in owners]
            draws = Draws(keys=keys.take(owners), seed=self._seed, modality=number, random=self._random_crop)
            made = spec.rows_of_files(items, self._decoder, draws)
            record.num_decoded += len(items)
            record.bad_media += made.failures
            found |= {owners[place]: rows for place, rows in made.rows.items()}
            attempt += 1
            files = {b: media for b, media in files.items() if b not in found and len(media) > attempt}
        return found


def _item(product: RawProduct, media: Media) -> MediaItem:
    return MediaItem(product.id, media.name, media.data)
