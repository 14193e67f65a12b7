"""Who attends to whom in a block: normalised visibility matrix, update flags, causal flags (DESIGN.md section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Matrix = Sequence[Sequence[bool]]


@dataclass(frozen=True)
class AttentionSpec:
    """Hashable, so that plans are built once per layout and spec. M modalities."""

    visibility: tuple[tuple[bool, ...], ...]
    """M x M: rows of query modality i see rows of key modality j of the same product."""
    updates: tuple[bool, ...]
    """M: rows of this modality are computed; the others are zero."""
    causal: tuple[bool, ...]
    """M: a row of this modality sees only rows of its own segment up to itself (other visible modalities fully)."""

    @classmethod
    def build(
        cls,
        num_modalities: int,
        visibility: Matrix | Tensor,
        updates: Sequence[bool] | None,
        causal: Sequence[bool] | None,
    ) -> "AttentionSpec":
        """`ValueError` where a shape is not M x M (visibility) or M (updates, causal)."""
        rows = visibility.tolist() if isinstance(visibility, Tensor) else visibility
        matrix = tuple(tuple(bool(cell) for cell in row) for row in rows)
        if len(matrix) != num_modalities or any(len(row) != num_modalities for row in matrix):
            widths = sorted({len(row) for row in matrix})
            raise ValueError(
                f"visibility must be {num_modalities} x {num_modalities} (the layout's modalities), "
                f"got {len(matrix)} rows of {widths} cells"
            )
        flags = {}
        for name, value, default in (("updates", updates, True), ("causal", causal, False)):
            flags[name] = (default,) * num_modalities if value is None else tuple(bool(flag) for flag in value)
            if len(flags[name]) != num_modalities:
                raise ValueError(f"{name} must hold {num_modalities} flags, got {len(flags[name])}")
        return cls(matrix, flags["updates"], flags["causal"])

    @property
    def num_modalities(self) -> int:
        return len(self.updates)

    def keys_of(self, query_modality: int) -> tuple[int, ...]:
        """The key modalities that rows of `query_modality` see; none where the block does not update it."""
        if not self.updates[query_modality]:
            return ()
        return tuple(m for m, visible in enumerate(self.visibility[query_modality]) if visible)

    def queries_of(self, key_modality: int) -> tuple[int, ...]:
        """The updated query modalities whose rows see `key_modality`."""
        return tuple(m for m in range(self.num_modalities) if key_modality in self.keys_of(m))

    def is_causal(self, query_modality: int) -> bool:
        """True where the causal flag changes anything: the modality is causal and sees its own rows."""
        return self.causal[query_modality] and self.visibility[query_modality][query_modality]
