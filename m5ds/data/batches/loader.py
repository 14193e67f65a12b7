"""Global batches from shards: which products, on which rank and micro-batch, prepared ahead by threads.

Global step k consumes positions [k * G, (k + 1) * G) of the run's order (DESIGN section 3.7). The G products are dealt
to the slots (rank, micro-batch) so that packed rows are nearly equal. What a product becomes depends on (seed, product,
draw) only: the global batch is the same whatever the world size, the accumulation or the number of threads.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from weakref import WeakSet

from m5ds import modality
from m5ds.batch import Batch
from m5ds.cache import Cache
from m5ds.config import DataConfig, ModalityConfig
from m5ds.data.batches.micro_batch import MicroBatchMaker, Prepared
from m5ds.data.batches.order import Order, Place, deal
from m5ds.data.batches.prefetch import Prefetched, prefetch
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import ShardReader
from m5ds.data.tokenizer import Tokenizer
from m5ds.inputs.media import BadMedia
from m5ds.kernels.common import philox


@dataclass(kw_only=True)
class StepBatches:
    """What this rank computes in one optimizer step or evaluation step."""

    epoch: int
    """The epoch of the global batch's first product; a global batch may reach into the next."""
    position: int
    """The global batch's first position in the run."""
    micro_batches: list[Batch]
    bad_media: list[BadMedia]
    """Files of this rank's products that could not be decoded."""
    num_decoded: int
    """Files of this rank's products that were given to a decoder."""
    wait_seconds: float
    """How long the consumer waited for this step."""


class Loader:
    """Batches of one rank. Its whole state is the position that `steps` starts from."""

    def __init__(
        self,
        config: DataConfig,
        modalities: Mapping[str, ModalityConfig],
        reader: ShardReader,
        tokenizer: Tokenizer,
        decoder: Decoder,
        *,
        seed: int,
        global_batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
    ) -> None:
        """`modalities`: the model's, in any order; batches keep table order. `training=False` for `evaluation_steps`.

        Raises ValueError where the global batch cannot be dealt equally, or exceeds the split.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        num_slots = world_size * accumulation
        if global_batch_size % num_slots:
            raise ValueError(
                f"train.global_batch_size {global_batch_size} must be a multiple of world size {world_size} x"
                f" train.accumulation {accumulation}; change one of them"
            )
        if training and reader.num_products < global_batch_size:
            raise ValueError(
                f"{reader.directory}: split {reader.split} has {reader.num_products} products, fewer than one"
                f" train.global_batch_size of {global_batch_size}; lower it or build more shards"
            )
        names = modality.in_table_order(tuple(modalities))
        self._specs = {name: modalities[name].input for name in names}
        self._reader = reader
        self._global_batch_size = global_batch_size
        self._num_slots = num_slots
        self._own_slots = range(rank * accumulation, (rank + 1) * accumulation)
        self._training = training
        self._num_threads = config.num_threads
        self._prefetch_steps = config.prefetch_steps
        self._order = Order(reader.shard_sizes, seed, config.chunk_size, config.window_chunks, shuffle=training)
        self._maker = MicroBatchMaker(
            self._specs,
            tokenizer,
            decoder,
            seed=seed,
            training=training,
            random_crop=config.random_crop,
            modality_dropout=config.modality_dropout,
        )
        # Of the steps under way: every micro-batch of a step asks for its plan.
        self._plans: Cache[int, list[list[Place | None]]] = Cache(config.prefetch_steps + 2)
        self._iterators: WeakSet[Generator[StepBatches]] = WeakSet()

    @property
    def num_products(self) -> int:
        """Products of the split."""
        return self._reader.num_products

    @property
    def num_evaluation_steps(self) -> int:
        """Global batches that hold the whole split once."""
        return -(-self.num_products // self._global_batch_size)

    def steps(self, position: int = 0, num_steps: int | None = None) -> Iterator[StepBatches]:
        """Training steps from a position of the run on, for ever or `num_steps` of them.

        Steps are prepared ahead, in order. An error of a reading thread (CorruptShardError, OSError) is raised here.
        """
        assert self._training and position >= 0
        return self._started(self._generate(position, num_steps))

    def evaluation_steps(self) -> Iterator[StepBatches]:
        """The whole split once, in the shards' order, every product with EVALUATION_DRAW.

        The last global batch is padded with empty products (id "", nothing present).
        """
        assert not self._training
        return self._started(self._generate(0, self.num_evaluation_steps))

    def close(self) -> None:
        """Stop every unfinished iterator and join its threads."""
        for iterator in list(self._iterators):
            iterator.close()

    def _started(self, iterator: Generator[StepBatches]) -> Generator[StepBatches]:
        self._iterators.add(iterator)
        return iterator

    def _generate(self, first: int, num_steps: int | None) -> Generator[StepBatches]:
        """The steps in order. Leaving it, by whatever way, ends its threads."""
        size = self._global_batch_size
        positions = count(first, size) if num_steps is None else iter(range(first, first + num_steps * size, size))
        slots = ([(position, slot) for slot in self._own_slots] for position in positions)
        steps = prefetch(slots, self._prepare, ahead=self._prefetch_steps, num_threads=self._num_threads)
        with closing(steps):
            for step in steps:
                yield self._step(step)

    def _step(self, prepared: Prefetched[tuple[int, int], Prepared]) -> StepBatches:
        position, _ = prepared.items[0]
        return StepBatches(
            epoch=position // self.num_products if self._training else 0,
            position=position,
            micro_batches=[item.batch for item in prepared.values],
            bad_media=[bad for item in prepared.values for bad in item.bad_media],
            num_decoded=sum(item.num_decoded for item in prepared.values),
            wait_seconds=prepared.wait_seconds,
        )

    def _plan(self, position: int) -> list[list[Place | None]]:
        """The products of every slot of the global batch at `position`; None pads an evaluation's last batch."""
        size = self._global_batch_size
        num_products = size if self._training else min(size, self.num_products - position)
        places: list[Place | None] = [*self._order.places(position, num_products)]
        places += [None] * (size - num_products)
        slots = deal([self._cost(place) for place in places], self._num_slots)
        return [[places[index] for index in slot] for slot in slots]

    def _cost(self, place: Place | None) -> int:
        """Estimated packed rows of a product."""
        if place is None:
            return 0
        index = self._reader.index(place.shard)
        rows = 0
        for name, spec in self._specs.items():
            if name not in index.present[place.index]:
                continue
            text_chars, table_chars = int(index.text_chars[place.index]), int(index.table_chars[place.index])
            rows += spec.estimated_rows(text_chars, table_chars) + 1
        return rows

    def _prepare(self, place_of_batch: tuple[int, int]) -> Prepared:
        """Read, decode and assemble the micro-batch of (position, slot); runs in a thread."""
        position, slot = place_of_batch
        places = self._plans.get(position, lambda: self._plan(position))[slot]
        products = [None if place is None else self._reader.read(place.shard, place.index) for place in places]
        draws = [philox.EVALUATION_DRAW if place is None or not self._training else place.epoch for place in places]
        return self._maker.make(products, draws)
