"""What an input kind is: everything that the project knows of one sort of rows, in one file a kind.

A kind is a strict dataclass of sizes, chosen in YAML by its `kind` field. It says how a record's own text or a file
becomes rows, what a row costs, what is masked together, and makes a random example. Data layer and model ask the
kind and never which kind it is. Shape letters: N rows, F features a row, K files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from pydantic import ConfigDict
from torch import Tensor

from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import BadMedia, Crop, Decoded, MediaError, MediaItem
from m5ds.inputs.rows import ProductRows, numbered, token_rows

STRICT = ConfigDict(extra="forbid", strict=True)
"""What every configuration dataclass is: an unknown key or an ill-typed value is an error."""
CHARACTERS_PER_TOKEN = 2
"""A guess for estimating lengths before anything is tokenised; it only decides who computes what."""


class Record(Protocol):
    """The part of a product that its record holds itself."""

    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def attributes(self) -> list[tuple[str, str]]: ...


class Tokens(Protocol):
    """The run's tokenizer."""

    @property
    def cls_id(self) -> int: ...
    @property
    def sep_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_short(self, text: str) -> list[int]:
        """As `encode`, remembered: for strings that repeat over and over."""
        ...


class MediaDecoder(Protocol):
    """Decodes the common media (m5ds/data/decode/decoder.py). A kind that reads another format decodes it itself."""

    def images(self, items: Sequence[MediaItem], spec: Any, crops: Sequence[Crop | None]) -> Decoded: ...

    def videos(
        self, items: Sequence[MediaItem], spec: Any, crops: Sequence[Crop | None], times: Sequence[Any]
    ) -> Decoded: ...

    def audios(self, items: Sequence[MediaItem], spec: Any, starts: Sequence[float]) -> Decoded: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadFiles:
    """What became of K files."""

    rows: dict[int, ProductRows]
    """By the file's place among the K."""
    failures: list[BadMedia]
    """One entry for each file without rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomTokens:
    """What random examples draw their tokens from: [first, vocab_size), and [CLS]."""

    vocab_size: int
    first: int
    cls: int


class InputKind:
    """Base of all kinds. A new one sets `kind`, `dim` and `max_rows`, makes rows, and overrides what differs."""

    reads_files: ClassVar[bool] = True
    """True: rows come from a file (`rows_of_files`). False: from the record itself (`rows_of_record`)."""
    medium: ClassVar[str | None] = None
    """The modality whose raw media it decodes (tools/check_media.py); None: features, or the record's text."""
    mask_units: ClassVar[tuple[str, ...]] = ("row",)
    """What `mask_unit` may say."""
    random_replacements: ClassVar[bool] = False
    """True: a masked token becomes [MASK], a random token or stays (BERT's 80/10/10). False: always the mask."""
    standardized_targets: ClassVar[bool] = False
    """True: the regression head predicts each row with mean 0 and deviation 1. False: as it is."""
    has_parts: ClassVar[bool] = False
    """True: `part_N` tells two parts apart (key and value), each with an embedding."""
    has_geometry: ClassVar[bool] = False
    """True: rows carry `geometry_N5`."""

    @property
    def kind(self) -> str:
        """The name in YAML: a `Literal` field of the dataclass with its default."""
        raise NotImplementedError

    @property
    def dim(self) -> int | None:
        """Features of a row; None: rows are tokens."""
        raise NotImplementedError

    @property
    def max_rows(self) -> int:
        """Most content rows of a product, [CLS] not counted."""
        raise NotImplementedError

    def rows_of_record(self, record: Record, tokens: Tokens) -> ProductRows | None:
        """The product's rows, None where it has none. Only kinds that read no files."""
        raise NotImplementedError

    def rows_of_files(self, items: Sequence[MediaItem], decoder: MediaDecoder, draws: Draws) -> ReadFiles:
        """Rows of K files, one of each product; a bad file is recorded, never raised. Only kinds that read files."""
        raise NotImplementedError

    def estimated_rows(self, text_chars: int, table_chars: int) -> int:
        """Content rows before anything is read, from the characters that the index counts (order.deal)."""
        return self.max_rows

    def unit_numbers(self, mask_unit: str, unit_N: Tensor, position_N: Tensor) -> Tensor:
        """int64 [N]: what is masked together, by number inside the product; -1 stays -1.

        `unit_N` numbers rows (tokens, patches, tubes) or table pairs; frames and single tokens are numbered here.
        """
        if mask_unit == "frame":
            number_N = self.time_step(position_N)
        elif mask_unit == "token":
            number_N = position_N
        else:
            return unit_N
        return torch.where(unit_N < 0, unit_N, number_N)

    def time_step(self, position_N: Tensor) -> Tensor:
        """int64 [N]: the time step (tube layer, column of audio patches, feature row) that each row belongs to.

        Rows of one step are what a `frame` masking unit masks together. ValueError for kinds without time.
        """
        raise ValueError(
            f"input {self.kind} has no time steps; masking unit `frame` needs video, audio or feature rows"
        )

    def random_rows(self, generator: torch.Generator, tokens: RandomTokens, full: bool) -> ProductRows:
        """A random product for tests and profiling: 1 (tokens: 2) to `max_rows` rows, or `max_rows` with `full`."""
        low = self.max_rows if full else 2 if self.dim is None else 1
        length = int(torch.randint(min(low, self.max_rows), self.max_rows + 1, (), generator=generator))
        if self.dim is None:
            return token_rows(torch.randint(tokens.first, tokens.vocab_size, (length,), generator=generator))
        return numbered(torch.randn(length, self.dim, generator=generator))


def read_each(items: Sequence[MediaItem], read: Callable[[bytes], ProductRows]) -> ReadFiles:
    """Files read one after another; where `read` raises a MediaError the file is recorded."""
    made = ReadFiles(rows={}, failures=[])
    for place, item in enumerate(items):
        try:
            made.rows[place] = read(item.data)
        except MediaError as error:
            made.failures.append(BadMedia(item.product_id, item.member, str(error)))
    return made


def divides(part: int, whole: int, names: str) -> None:
    """ValueError unless `whole` is a positive multiple of `part`."""
    if part < 1 or whole < 1 or whole % part:
        raise ValueError(f"{names}: {whole} must be a positive multiple of {part}")


def positive(name: str, value: int) -> None:
    """ValueError unless `value` is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
