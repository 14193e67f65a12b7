"""Raw products to a batch: choose files, decode, tokenise, cut into rows. A pure function of products and draws.

Shape letters: B products, M modalities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from m5ds import inputs, modality
from m5ds.batch import Batch, ModalityRows
from m5ds.data.batches import augment, rows
from m5ds.data.batches.augment import Keys
from m5ds.data.batches.rows import FeatureFileError, ProductRows
from m5ds.data.decode.decoder import Decoder
from m5ds.data.decode.media import BadMedia, MediaItem
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.data.tokenizer import Tokenizer
from m5ds.kernels.common import philox

_REMEMBERED_STRINGS = 1 << 16
_MAX_CHARACTERS_PER_TOKEN = 64


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

    bad_media: list[BadMedia]
    num_decoded: int = 0


class MicroBatchMaker:
    """Makes batches of the given modalities. Safe to share among threads if the decoder is."""

    def __init__(
        self,
        specs: Mapping[str, inputs.InputSpec],
        tokenizer: Tokenizer,
        decoder: Decoder,
        *,
        seed: int = 0,
        training: bool = False,
        random_crop: bool = True,
        modality_dropout: float = 0.0,
    ) -> None:
        """`specs`: input of each modality; batches keep table order. What is random: docs/data.md."""
        self._specs = {name: specs[name] for name in modality.in_table_order(tuple(specs))}
        self._numbers = [modality.names().index(name) for name in self._specs]
        self._tokenizer = tokenizer
        self._decoder = decoder
        self._seed = seed
        self._training = training
        self._random_crop = training and random_crop
        self._modality_dropout = modality_dropout if training else 0.0
        # Keys and most values of tables repeat over and over; titles do not.
        self._encode_short = lru_cache(_REMEMBERED_STRINGS)(tokenizer.encode)

    def make(self, products: Sequence[RawProduct | None], draws: Sequence[int]) -> Prepared:
        """The batch of these products; None stands for an empty one (id "", nothing present).

        `draws`: the epoch or mixture draw of each, or philox.EVALUATION_DRAW.
        """
        hashes = [philox.product_hash("") if product is None else product.product for product in products]
        keys = Keys(torch.tensor(hashes, dtype=torch.int64), torch.tensor(draws, dtype=torch.int64))
        wanted_BM = self._wanted(products, keys)
        record = _Record(bad_media=[])
        modalities: dict[str, ModalityRows] = {}
        for m, (name, spec) in enumerate(self._specs.items()):
            chosen = {b: product for b, product in enumerate(products) if product is not None and wanted_BM[b, m]}
            made = self._rows(name, spec, chosen, keys, record)
            modalities[name] = rows.assemble([made.get(b) for b in range(len(products))], spec)
        batch = Batch(
            ids=["" if product is None else product.id for product in products],
            product_B=keys.product_K,
            draw_B=keys.draw_K,
            label_B=torch.tensor([-1 if product is None else product.label for product in products], dtype=torch.int64),
            group_B=torch.tensor(
                [philox.product_hash("" if product is None else product.group) for product in products],
                dtype=torch.int64,
            ),
            present_BM=torch.stack([made.length_B > 0 for made in modalities.values()], dim=1),
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
        return augment.kept_modalities(keys, self._seed, self._numbers, present_BM, self._modality_dropout)

    def _rows(
        self, name: str, spec: inputs.InputSpec, chosen: dict[int, RawProduct], keys: Keys, record: _Record
    ) -> Mapping[int, ProductRows | None]:
        """Rows of the chosen products by their place in the batch; none where one turns out to lack the modality."""
        if isinstance(spec, inputs.TextTokens):
            return {b: self._text(product, spec) for b, product in chosen.items()}
        if isinstance(spec, inputs.TablePairs):
            return {b: self._table(product, spec) for b, product in chosen.items()}
        if isinstance(spec, inputs.RegionFeatures):
            return self._from_files(name, chosen, keys, record, _each(lambda data: rows.region_rows(data, spec)))
        if isinstance(spec, inputs.FeatureRows):
            return self._from_files(name, chosen, keys, record, _each(lambda data: rows.feature_rows(data, spec)))

        def decode(items: list[MediaItem], owners: Keys) -> "_Made":
            return self._decode(name, spec, items, owners)

        return self._from_files(name, chosen, keys, record, decode)

    def _text(self, product: RawProduct, spec: inputs.TextTokens) -> ProductRows | None:
        tokens = self._tokenizer.encode(product.title)
        if spec.use_description and len(tokens) < spec.max_tokens:
            # Tokens past the limit are cut anyway, so a novel of a description is not tokenised whole.
            tokens = tokens + self._tokenizer.encode(product.description[: _MAX_CHARACTERS_PER_TOKEN * spec.max_tokens])
        if not tokens:
            return None
        tokenizer = self._tokenizer
        return rows.text_rows(tokens, spec.max_tokens, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id)

    def _table(self, product: RawProduct, spec: inputs.TablePairs) -> ProductRows | None:
        pairs = [(self._encode_short(key), self._encode_short(value)) for key, value in product.attributes]
        return rows.table_rows(pairs, max_tokens=spec.max_tokens, max_tokens_per_pair=spec.max_tokens_per_pair)

    def _from_files(
        self,
        name: str,
        chosen: dict[int, RawProduct],
        keys: Keys,
        record: _Record,
        decode: Callable[[list[MediaItem], Keys], "_Made"],
    ) -> dict[int, ProductRows]:
        """Decode one file of each product, and where that fails the product's next ones."""
        files = {b: product.media.get(name, []) for b, product in chosen.items()}
        files = {b: media for b, media in files.items() if media}
        if self._training and files:
            first = augment.first_files(
                keys.take(list(files)),
                self._seed,
                modality.names().index(name),
                [len(media) for media in files.values()],
            )
            files = {b: media[f:] + media[:f] for (b, media), f in zip(files.items(), first, strict=True)}
        found: dict[int, ProductRows] = {}
        attempt = 0
        while files:
            owners = list(files)
            items = [_item(chosen[b], files[b][attempt]) for b in owners]
            made = decode(items, keys.take(owners))
            record.num_decoded += len(items)
            record.bad_media += made.failures
            found |= {owners[place]: product_rows for place, product_rows in made.rows.items()}
            attempt += 1
            files = {b: media for b, media in files.items() if b not in found and len(media) > attempt}
        return found

    def _decode(self, name: str, spec: inputs.InputSpec, items: list[MediaItem], keys: Keys) -> "_Made":
        number, seed = modality.names().index(name), self._seed
        crops = augment.crops(keys, seed, number) if self._random_crop else [None] * len(items)
        if isinstance(spec, inputs.ImagePatches):
            decoded = self._decoder.images(items, spec, crops)
            assert isinstance(decoded.values, Tensor)
            products = rows.image_rows(decoded.values, spec)
        elif isinstance(spec, inputs.VideoTubes):
            times_KT = (
                augment.frame_times(keys, seed, number, spec.frames)
                if self._random_crop
                else augment.centre_times(len(items), spec.frames)
            )
            decoded = self._decoder.videos(items, spec, crops, times_KT.tolist())
            assert isinstance(decoded.values, Tensor)
            products = rows.video_rows(decoded.values, spec)
        else:
            assert isinstance(spec, inputs.AudioPatches)
            starts = augment.window_starts(keys, seed, number).tolist() if self._random_crop else [0.5] * len(items)
            decoded = self._decoder.audios(items, spec, starts)
            products = rows.audio_rows(list(decoded.values), spec)
        return _Made(rows=dict(zip(decoded.kept, products, strict=True)), failures=decoded.failures)


@dataclass(kw_only=True)
class _Made:
    """Rows by the item's place, and the items that failed."""

    rows: dict[int, ProductRows]
    failures: list[BadMedia]


def _item(product: RawProduct, media: Media) -> MediaItem:
    return MediaItem(product.id, media.name, media.data)


def _each(read: Callable[[bytes], ProductRows]) -> Callable[[list[MediaItem], Keys], _Made]:
    """A reader of feature files: one after another, a bad one recorded."""

    def decode(items: list[MediaItem], keys: Keys) -> _Made:
        made = _Made(rows={}, failures=[])
        for place, item in enumerate(items):
            try:
                made.rows[place] = read(item.data)
            except FeatureFileError as error:
                made.failures.append(BadMedia(item.product_id, item.member, str(error)))
        return made

    return decode
