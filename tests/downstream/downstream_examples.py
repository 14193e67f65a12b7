"""Embedding sets for the tests of this folder."""

import numpy as np

from m5ds.downstream.embeddings import EmbeddingInfo, EmbeddingSet

NAMES = ("image", "text", "table")


def embedding_set(vector_ND, label_N=None, *, ids=None, present_NM=None, group=None, **info) -> EmbeddingSet:
    """A set over the modalities image, text, table; everything present and labelled 0 unless said otherwise."""
    vector_ND = np.asarray(vector_ND, dtype=np.float32)
    count, width = vector_ND.shape
    described = {
        "model": "weights-a",
        "data": "manifest-a",
        "split": "test",
        "model_modalities": NAMES,
        "modalities": NAMES,
        "operation": "mean",
        "normalized": False,
        "width": width,
        "num_products": count,
        "shard_size": 4,
    }
    return EmbeddingSet(
        info=EmbeddingInfo(**(described | info)),
        ids=tuple(ids or (f"p{i}" for i in range(count))),
        vector_ND=vector_ND,
        label_N=np.zeros(count, dtype=np.int64) if label_N is None else np.asarray(label_N, dtype=np.int64),
        present_NM=np.ones((count, 3), dtype=bool) if present_NM is None else np.asarray(present_NM, dtype=bool),
        group=tuple(group or [""] * count),
    )
