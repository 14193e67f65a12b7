"""The products of a split as batches for evaluation, in the shards' order, prepared ahead by a thread.

The products of positions [start, stop) always come in the same batches, whatever the number of ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, replace

import torch

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.config import ModelConfig
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.batches.order import Order, Place
from m5ds.data.batches.prefetch import prefetch
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import Media, RawProduct, ShardReader
from m5ds.data.tokenizer import Tokenizer
from m5ds.inputs.media import BadMedia
from m5ds.kernels.common import philox

Transform = Callable[[RawProduct], RawProduct]

KEPT_BYTES = 256 << 20
"""Decoded rows of a split that stay in memory, so that a small split is decoded once for all tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationBatch:
    """Products of consecutive positions and what was found wrong with their files."""

    batch: Batch
    group: list[str]
    bad_media: list[BadMedia]


class EvaluationData:
    """Random access to a split's evaluation batches. `num_products`, `manifest` and `split` describe it."""

    def __init__(
        self,
        shards: str,
        split: str,
        spec: ModelConfig,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 32,
        num_threads: int = 1,
        transform: Transform | None = None,
        relabel: Transform | None = None,
    ) -> None:
        """`transform` changes each product before it is decoded (another picture, damaged bytes), `relabel` its label.

        `ValueError`: no such split, or an empty one.
        """
        self.reader = ShardReader(shards, split)
        self.manifest, self.split = self.reader.manifest, split
        if not self.reader.num_products:
            raise ValueError(f"{shards}: split {split} has no product; name another with --split")
        self._order = Order(self.reader.shard_sizes, 0, chunk_size=64, window_chunks=1, shuffle=False)
        self._transforms = [change for change in (transform, relabel) if change is not None]
        self._maker = MicroBatchMaker(
            {name: spec.modalities[name].input for name in spec.modality_names},
            tokenizer,
            Decoder(),
            seed=0,
            training=False,
            random_crop=False,
            modality_dropout=0.0,
        )
        self.batch_size, self._num_threads = batch_size, num_threads
        self._kept: dict[tuple[Place, ...], EvaluationBatch] = {}
        self._kept_bytes = 0

    @property
    def num_products(self) -> int:
        return self.reader.num_products

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[EvaluationBatch]:
        """The products of positions [start, stop) in order. Batches are kept for the next pass up to KEPT_BYTES."""
        places = self._order.places(start, (self.num_products if stop is None else stop) - start)
        cuts = [[tuple(places[i : i + self.batch_size])] for i in range(0, len(places), self.batch_size)]
        prepared = prefetch(cuts, self._prepare, ahead=self._num_threads + 1, num_threads=self._num_threads)
        with closing(prepared):
            for one in prepared:
                yield from one.values

    def _prepare(self, places: tuple[Place, ...]) -> EvaluationBatch:
        if places in self._kept:
            return self._kept[places]
        made = self._make(places)
        size = sum(_num_bytes(rows) for rows in made.batch.modalities.values())
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[places] = made
            self._kept_bytes += size
        return made

    def _make(self, places: tuple[Place, ...]) -> EvaluationBatch:
        products = [self.reader.read(place.shard, place.index) for place in places]
        for change in self._transforms:
            products = [change(product) for product in products]
        prepared = self._maker.make(products, [philox.EVALUATION_DRAW] * len(products))
        return EvaluationBatch(
            batch=prepared.batch, group=[product.group for product in products], bad_media=prepared.bad_media
        )


def _num_bytes(rows: ModalityRows) -> int:
    values = (getattr(rows, field.name) for field in fields(rows))
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def use_file(index: int) -> Transform:
    """Show the file of this number (0: the first) of each modality that has several; the modality is absent without it.

    The query of instance retrieval is one picture of a product, its gallery another picture of it.
    """

    def transform(product: RawProduct) -> RawProduct:
        media = {name: files[index : index + 1] for name, files in product.media.items() if index < len(files)}
        lost = set(product.media) - set(media)
        return replace(product, media=media, present=product.present - lost)

    return transform


def damage_files(share: float, seed: int) -> Transform:
    """Cut a share of all media files to their first third, as an interrupted download leaves them; keyed by product.

    `ValueError` for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of damaged files must lie in [0, 1], got {share}")

    def damaged(product: RawProduct, name: str, number: int, media: Media) -> Media:
        word = philox.random_words(
            seed=seed,
            draw=philox.EVALUATION_DRAW,
            product=torch.tensor(product.product),
            stream=philox.Stream.MEDIA_CHOICE,
            modality=modality.get(name).number,
            element=number,
            index=1,
        )[0]
        return Media(media.name, media.data[: len(media.data) // 3]) if word < philox.threshold(share) else media

    def transform(product: RawProduct) -> RawProduct:
        media = {
            name: [damaged(product, name, number, file) for number, file in enumerate(files)]
            for name, files in product.media.items()
        }
        return replace(product, media=media)

    return transform
