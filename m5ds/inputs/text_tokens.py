"""Title and description as tokens. Shape letter: N rows."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from m5ds.inputs.base import CHARACTERS_PER_TOKEN, STRICT, InputKind, RandomTokens, Record, Tokens, positive
from m5ds.inputs.registry import register
from m5ds.inputs.rows import ProductRows, token_rows

_MAX_CHARACTERS_PER_TOKEN = 64


@register
@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextTokens(InputKind):
    """Token ids of title and description. The first row is the tokenizer's [CLS] token."""

    kind: Literal["text_tokens"] = "text_tokens"
    max_tokens: int = 36
    use_description: bool = True

    dim: ClassVar[None] = None
    reads_files: ClassVar[bool] = False
    mask_units: ClassVar[tuple[str, ...]] = ("token",)
    random_replacements: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("text max_tokens", self.max_tokens)

    @property
    def max_rows(self) -> int:
        return self.max_tokens

    def rows_of_record(self, record: Record, tokens: Tokens) -> ProductRows | None:
        ids = tokens.encode(record.title)
        if self.use_description and len(ids) < self.max_tokens:
            # Tokens past the limit are cut anyway, so a novel of a description is not tokenised whole.
            ids = ids + tokens.encode(record.description[: _MAX_CHARACTERS_PER_TOKEN * self.max_tokens])
        return self.rows_of_tokens(ids, cls_id=tokens.cls_id, sep_id=tokens.sep_id) if ids else None

    def rows_of_tokens(self, ids: Sequence[int], *, cls_id: int, sep_id: int) -> ProductRows:
        """[CLS], tokens, [SEP], at most `max_tokens` in all; tokens are cut, never [SEP]. Both have unit -1."""
        kept = [cls_id, *ids[: max(self.max_tokens - 2, 0)], sep_id][: self.max_tokens]
        rows = token_rows(torch.tensor(kept, dtype=torch.int64))
        rows.unit_N[0] = rows.unit_N[-1] = -1
        return rows

    def estimated_rows(self, text_chars: int, table_chars: int) -> int:
        return min(self.max_rows, 1 + text_chars // CHARACTERS_PER_TOKEN)

    def random_rows(self, generator: torch.Generator, tokens: RandomTokens, full: bool) -> ProductRows:
        rows = super().random_rows(generator, tokens, full)
        assert rows.token_N is not None
        rows.token_N[0] = tokens.cls
        rows.unit_N[0] = -1
        return rows
