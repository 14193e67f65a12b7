"""From projection rows and token ids to the packed buffer: masking, embeddings, [CLS] rows, LayerNorm (DESIGN 5).

Shape letters: B products, M modalities, N content rows of one modality, T packed rows, D width.
"""

from torch import Tensor

from m5ds.kernels.common.dispatch import choose_path
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities.inputs import EmbedInput, check
from m5ds.kernels.embed_modalities.masking import MaskSpec, draw_mask, replace_tokens
from m5ds.kernels.embed_modalities.reference import embed_modalities_reference
from m5ds.kernels.embed_modalities.torch_path import embed_modalities_torch

__all__ = ["EmbedInput", "MaskSpec", "draw_mask", "embed_modalities", "replace_tokens"]


def embed_modalities(
    inputs: list[EmbedInput], layout: PackedLayout, *, seed: int, eps: float, path: str | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Embed every modality's rows straight into the packed buffer of `layout`.

    `inputs` holds one EmbedInput per modality in slab order; `seed` is the run's seed, `eps` LayerNorm's. A segment of
    modality m has its product's content rows, after one [CLS] row where `cls_D` is set. Row statistics are float32.

    Returns x_TD in the inputs' dtype, and per modality a bool [N] over content rows: True = masked, a target.
    Every parameter gets a gradient tensor, zeros where no row uses it. `ValueError` names a bad argument.
    """
    check(inputs, layout)
    chosen = choose_path("embed_modalities", layout.device, path)
    if chosen == "triton":
        # Imported when first used: a machine without a GPU needs no Triton.
        from m5ds.kernels.embed_modalities.triton_path import embed_modalities_triton as run
    else:
        run = embed_modalities_reference if chosen == "reference" else embed_modalities_torch
    return run(inputs, layout, seed=seed, eps=eps)
