"""From a run's block list to the layers of the model: visibility presets become matrices, `repeat` becomes layers.

M modalities in table order. visibility[i][j] is True iff query rows of modality i see key rows of modality j of their
product.
"""

from dataclasses import dataclass

from m5ds.config import BlockConfig, ModelConfig

Matrix = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One transformer block, every default resolved. Flags are tuples of M bools."""

    name: str
    """`<block name>_<repetition>`."""
    index: int
    """Number of the layer in the model, part of the key of its dropout."""
    visibility: Matrix
    updates: tuple[bool, ...]
    causal: tuple[bool, ...]
    shared_attention: bool
    shared_ffn: bool
    pre_norm: bool
    activation: str
    num_heads: int
    ffn_dim: int

    @property
    def attends(self) -> tuple[bool, ...]:
        """Modalities whose rows take part in the attention: updated, or seen by an updated one."""
        num = len(self.updates)
        seen = [any(self.updates[i] and self.visibility[i][j] for i in range(num)) for j in range(num)]
        return tuple(self.updates[j] or seen[j] for j in range(num))

    @property
    def is_unimodal(self) -> bool:
        """True where no row sees another modality."""
        num = len(self.updates)
        return not any(self.visibility[i][j] for i in range(num) for j in range(num) if i != j)


def visibility_matrix(visibility: str | list[list[bool]] | dict[str, list[str]], names: tuple[str, ...]) -> Matrix:
    """The M x M matrix of a preset, a matrix, or a mapping query modality -> key modalities.

    Raises ValueError for an unknown preset or modality, another shape, or a mapping that leaves a modality out.
    """
    num = len(names)
    if isinstance(visibility, str):
        presets = {
            "identity": lambda i, j: i == j,
            "all": lambda i, j: True,
            "off_diagonal": lambda i, j: i != j,
        }
        if visibility not in presets:
            raise ValueError(
                f"visibility {visibility!r} is unknown; use {', '.join(presets)}, a {num} x {num} matrix or a mapping"
            )
        return tuple(tuple(presets[visibility](i, j) for j in range(num)) for i in range(num))
    if isinstance(visibility, dict):
        for name in [*visibility, *(key for keys in visibility.values() for key in keys)]:
            if name not in names:
                raise ValueError(f"visibility names {name!r}; the model has {', '.join(names)}")
        if left_out := [name for name in names if name not in visibility]:
            raise ValueError(
                f"visibility leaves out {', '.join(left_out)}; say what every modality sees,"
                f" e.g. {left_out[0]}: [{left_out[0]}]"
            )
        return tuple(tuple(key in visibility[query] for key in names) for query in names)
    if len(visibility) != num or any(len(row) != num for row in visibility):
        raise ValueError(f"visibility must be {num} x {num}, one row and column for each of {', '.join(names)}")
    return tuple(tuple(bool(cell) for cell in row) for row in visibility)


def layers(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """All layers of the model in order. Raises ValueError naming the block."""
    found: list[LayerSpec] = []
    for name, block in config.blocks.items():
        for repetition in range(block.repeat):
            try:
                found.append(_layer(f"{name}_{repetition}", len(found), block, config))
            except ValueError as error:
                raise ValueError(f"model.blocks.{name}: {error}") from error
    return tuple(found)


def num_unimodal(found: tuple[LayerSpec, ...]) -> int:
    """How many leading layers are unimodal encoders: contrastive features are read after them."""
    return next((number for number, layer in enumerate(found) if not layer.is_unimodal), len(found))


def _layer(name: str, index: int, block: BlockConfig, config: ModelConfig) -> LayerSpec:
    names = config.modality_names
    for field, entries in (("updates", block.updates), ("causal", block.causal)):
        for entry in entries or []:
            if entry not in names:
                raise ValueError(f"{field} names {entry!r}; the model has {', '.join(names)}")
    num_heads = block.num_heads or config.num_heads
    if config.hidden_size % num_heads:
        raise ValueError(f"num_heads {num_heads} must divide hidden_size {config.hidden_size}")
    return LayerSpec(
        name=name,
        index=index,
        visibility=visibility_matrix(block.visibility, names),
        updates=tuple(block.updates is None or entry in block.updates for entry in names),
        causal=tuple(entry in block.causal for entry in names),
        shared_attention=block.attention_weights == "shared",
        shared_ffn=block.ffn_weights == "shared",
        pre_norm=block.norm == "pre",
        activation=block.activation,
        num_heads=num_heads,
        ffn_dim=block.ffn_dim or config.ffn_dim,
    )
