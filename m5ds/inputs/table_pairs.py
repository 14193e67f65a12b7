"""The attribute table as tokens, pair after pair. Shape letter: N rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from m5ds.inputs.base import CHARACTERS_PER_TOKEN, STRICT, InputKind, RandomTokens, Record, Tokens, positive
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows

_Ids = Sequence[int]


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class TablePairs(InputKind):
    """Token ids of the attributes, key then value, pair after pair. A pair that does not fit whole is left out."""

    kind: Literal["table_pairs"] = "table_pairs"
    max_tokens: int = 64
    max_tokens_per_pair: int = 24

    dim: ClassVar[None] = None
    reads_files: ClassVar[bool] = False
    mask_units: ClassVar[tuple[str, ...]] = ("pair", "token", "key_or_value")
    has_parts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("table max_tokens", self.max_tokens)
        positive("table max_tokens_per_pair", self.max_tokens_per_pair)

    @property
    def max_rows(self) -> int:
        return self.max_tokens

    def rows_of_record(self, record: Record, tokens: Tokens) -> ProductRows | None:
        pairs = [(tokens.encode_short(key), tokens.encode_short(value)) for key, value in record.attributes]
        return self.rows_of_pairs(pairs)

    def rows_of_pairs(
        self, pairs: Sequence[tuple[_Ids, _Ids]], order: Sequence[int] | None = None
    ) -> ProductRows | None:
        """Key tokens then value tokens, pair after pair in `order` (default: as given).

        A pair longer than `max_tokens_per_pair`, or than what is left of `max_tokens`, is left out whole; a later,
        shorter one may still fit. Unit: the pair's index in `pairs`, so that it keeps its random draws in any order.
        Part: 0 key, 1 value. None where no pair fits.
        """
        token_N: list[int] = []
        unit_N: list[int] = []
        part_N: list[int] = []
        for index in range(len(pairs)) if order is None else order:
            key, value = pairs[index]
            length = len(key) + len(value)
            if length > self.max_tokens_per_pair or len(token_N) + length > self.max_tokens:
                continue
            token_N += [*key, *value]
            unit_N += [index] * length
            part_N += [0] * len(key) + [1] * len(value)
        if not token_N:
            return None
        return ProductRows(
            position_N=torch.arange(len(token_N)),
            unit_N=torch.tensor(unit_N),
            part_N=torch.tensor(part_N),
            token_N=torch.tensor(token_N, dtype=torch.int64),
        )

    def estimated_rows(self, text_chars: int, table_chars: int) -> int:
        return min(self.max_rows, 1 + table_chars // CHARACTERS_PER_TOKEN)

    def random_rows(self, generator: torch.Generator, tokens: RandomTokens, full: bool) -> ProductRows:
        """Pairs of a one-token key and a value of two tokens."""
        rows = super().random_rows(generator, tokens, full)
        rows.unit_N, rows.part_N = rows.position_N // 3, (rows.position_N % 3 > 0).long()
        return rows
