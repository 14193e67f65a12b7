"""Batches of random rows with any presence, for tests and profiling: no files, no decoders.

B products, M modalities.
"""

import torch
from torch import Tensor

from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.inputs.base import RandomTokens
from m5ds.inputs.rows import assemble
from m5ds.kernels.common.philox import product_hash


def random_batch(
    spec: ModelConfig,
    present_BM: Tensor | list[list[bool]],
    *,
    vocab_size: int = 0,
    first_token: int = 5,
    cls_token: int = 2,
    seed: int = 0,
    draw: int = 0,
    ids: list[str] | None = None,
    full: bool = False,
) -> Batch:
    """A batch whose rows depend on (seed, product id, modality) only, so that products can be regrouped.

    `present_BM` bool [B, M] in the model's modality order. Lengths are random between 1 and `max_rows`, or `max_rows`
    with `full`. Tokens are drawn from [first_token, vocab_size); text begins with `cls_token`, which is never masked.
    """
    present_BM = torch.as_tensor(present_BM, dtype=torch.bool)
    ids = ids or [f"product-{number}" for number in range(len(present_BM))]
    tokens = RandomTokens(vocab_size=vocab_size, first=first_token, cls=cls_token)
    modalities = {}
    for m, name in enumerate(spec.modality_names):
        kind = spec.modalities[name].input
        products = [
            kind.random_rows(torch.Generator().manual_seed(product_hash(f"{seed}/{product}/{name}")), tokens, full)
            if present
            else None
            for product, present in zip(ids, present_BM[:, m].tolist(), strict=True)
        ]
        modalities[name] = assemble(products, kind.dim, kind.has_geometry)
    return Batch(
        ids=ids,
        product_B=torch.tensor([product_hash(product) for product in ids], dtype=torch.int64),
        draw_B=torch.full((len(ids),), draw, dtype=torch.int64),
        label_B=torch.full((len(ids),), -1, dtype=torch.int64),
        present_BM=present_BM,
        modalities=modalities,
    )
