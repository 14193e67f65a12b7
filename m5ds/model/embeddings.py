"""From a batch's rows to the packed buffer: embedders per kind of input, and the one module that owns all tables.

N content rows of one modality, F features of a row, D hidden width, T packed rows, B products, M modalities.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from m5ds import modality
from m5ds.batch import Batch, ModalityRows
from m5ds.config import ModalityConfig
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities import EmbedInput, embed_modalities
from m5ds.model.configuration import M5Config
from m5ds.model.masking import mask_spec, mask_units


class Embedder(nn.Module):
    """Base of all embedders: what a row's content becomes before position and modality are added. Tokens need no
    more.
    """

    uses_tokens = True
    """True: rows are token ids and the modality gets a token table. False: `forward` projects features."""

    def __init__(self, name: str, settings: ModalityConfig, hidden_size: int) -> None:
        super().__init__()
        if (settings.input.dim is None) != self.uses_tokens:
            wanted = "tokens" if self.uses_tokens else "features"
            raise ValueError(
                f"model.modalities.{name}.embedder {settings.embedder!r} takes {wanted},"
                f" input kind is {settings.input.kind}"
            )
        self.num_positions = settings.input.max_rows

    def forward(self, rows: ModalityRows) -> tuple[Tensor | None, Tensor | None]:
        """(projected_ND, extra_ND): content that the mask may replace, and what is added to masked rows too."""
        return None, None

    def positions(self, rows: ModalityRows) -> Tensor:
        """int64 [N]: index into the position table of `num_positions` rows."""
        return rows.position_N


_EMBEDDERS: dict[str, type[Embedder]] = {}


def register(name: str) -> Callable[[type[Embedder]], type[Embedder]]:
    """Make an embedder known to configurations under this name."""

    def add(embedder: type[Embedder]) -> type[Embedder]:
        _EMBEDDERS[name] = embedder
        return embedder

    return add


register("tokens")(Embedder)


@register("patches")
@register("feature_rows")
class ProjectedRows(Embedder):
    """One linear projection of raw patches (tubes, time-frequency patches) or of precomputed feature rows."""

    uses_tokens = False

    def __init__(self, name: str, settings: ModalityConfig, hidden_size: int) -> None:
        super().__init__(name, settings, hidden_size)
        assert settings.input.dim is not None
        self.projection = nn.Linear(settings.input.dim, hidden_size)

    def forward(self, rows: ModalityRows) -> tuple[Tensor | None, Tensor | None]:
        assert rows.values_NF is not None
        return self.projection(rows.values_NF.to(self.projection.weight.dtype)), None


@register("regions")
class Regions(ProjectedRows):
    """Detector regions: their features, plus the projected box, which a masked region keeps. Regions have no order."""

    def __init__(self, name: str, settings: ModalityConfig, hidden_size: int) -> None:
        super().__init__(name, settings, hidden_size)
        if not settings.input.has_geometry:
            raise ValueError(
                f"model.modalities.{name}.embedder regions takes input kind region_features, got {settings.input.kind}"
            )
        self.num_positions = 1
        self.geometry = nn.Linear(5, hidden_size)

    def forward(self, rows: ModalityRows) -> tuple[Tensor | None, Tensor | None]:
        assert rows.geometry_N5 is not None
        projected_ND, _ = super().forward(rows)
        return projected_ND, self.geometry(rows.geometry_N5.to(self.geometry.weight.dtype))

    def positions(self, rows: ModalityRows) -> Tensor:
        return torch.zeros_like(rows.position_N)


class Embeddings(nn.Module):
    """Owns every table and calls the kernel in its own forward, so that ZeRO-3 gathers them for it.

    Parameters are named `<modality>_<what>`: token (own table of each modality, shared tokenizer or not), position,
    modality, part (tables), mask (continuous), cls (learned), norm_weight, norm_bias.
    """

    def __init__(self, config: M5Config) -> None:
        super().__init__()
        spec = config.spec
        dim = spec.hidden_size
        self.names = spec.modality_names
        self.eps = spec.layer_norm_eps
        self.special_ids = config.special_ids
        self.settings = spec.modalities
        self.embedders = nn.ModuleDict()
        self.mask_specs = {}
        for name in self.names:
            settings = spec.modalities[name]
            if settings.embedder not in _EMBEDDERS:
                raise ValueError(
                    f"model.modalities.{name}.embedder {settings.embedder!r} is unknown;"
                    f" registered: {', '.join(sorted(_EMBEDDERS))}"
                )
            embedder = _EMBEDDERS[settings.embedder](name, settings, dim)
            self.embedders[name] = embedder
            if embedder.uses_tokens and config.vocab_size < 1:
                raise ValueError(f"model.modalities.{name} has tokens but vocab_size is 0; build with a tokenizer")
            self.mask_specs[name] = mask_spec(name, settings, config)
            if embedder.uses_tokens:
                self._add(name, "token", config.vocab_size, dim)
            elif self.mask_specs[name] is not None:
                self._add(name, "mask", dim)
            if settings.input.has_parts:
                self._add(name, "part", 2, dim)
            if settings.cls == "learned":
                self._add(name, "cls", dim)
            self._add(name, "position", embedder.num_positions, dim)
            for what in ("modality", "norm_weight", "norm_bias"):
                self._add(name, what, dim)

    def _add(self, name: str, what: str, *shape: int) -> None:
        self.register_parameter(f"{name}_{what}", nn.Parameter(torch.zeros(shape)))

    def token_table(self, name: str) -> nn.Parameter | None:
        """The modality's token table [V, D], None where its rows are not tokens."""
        return getattr(self, f"{name}_token", None)

    def forward(self, batch: Batch, layout: PackedLayout, seed: int, masked: bool) -> tuple[Tensor, list[Tensor]]:
        """x_TD and per modality a bool [N] over content rows: True = masked. `masked` False: nothing is."""
        inputs = [self._input(name, batch.modalities[name], seed, masked) for name in self.names]
        return embed_modalities(inputs, layout, seed=seed, eps=self.eps)

    def _input(self, name: str, rows: ModalityRows, seed: int, masked: bool) -> EmbedInput:
        embedder = self.embedders[name]
        assert isinstance(embedder, Embedder)
        projected_ND, extra_ND = embedder(rows)
        return EmbedInput(
            modality=modality.get(name).number,
            position_N=embedder.positions(rows),
            unit_N=mask_units(rows, self.settings[name], self.special_ids) if masked else rows.unit_N,
            part_N=rows.part_N,
            position_table_PD=getattr(self, f"{name}_position"),
            modality_D=getattr(self, f"{name}_modality"),
            norm_weight_D=getattr(self, f"{name}_norm_weight"),
            norm_bias_D=getattr(self, f"{name}_norm_bias"),
            projected_ND=projected_ND,
            token_N=rows.token_N if embedder.uses_tokens else None,
            token_table_VD=self.token_table(name),
            part_table_2D=getattr(self, f"{name}_part", None),
            extra_ND=extra_ND,
            mask_D=getattr(self, f"{name}_mask", None),
            cls_D=getattr(self, f"{name}_cls", None),
            mask=self.mask_specs[name] if masked else None,
        )
