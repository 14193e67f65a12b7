"""Embedding sets, tiny models and batches for the tests of this folder."""

from pathlib import Path

import numpy as np
import torch

from m5ds import config
from m5ds.data.batches.random_batch import random_batch
from m5ds.downstream.embed.embeddings import EmbeddingInfo, EmbeddingSet
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining

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


TINY = """
name: tiny
model:
  base: {root}/configs/model/m5mmt.yaml
  hidden_size: 16
  num_heads: 2
  ffn_dim: 24
  dropout: 0.0
  modalities:
    image: {{input: {{size: 12, patch: 4}}}}
    text: {{input: {{max_tokens: 6}}}}
    table: {{input: {{max_tokens: 9}}}}
    video: {{input: {{frames: 4, size: 8, patch: 4}}}}
    audio: {{input: {{seconds: 0.6, num_mels: 16, patch_mels: 8}}}}
  blocks: {{unimodal: {{repeat: 1}}}}
  projection_dim: 8
train: {{total_steps: 1}}
"""
VOCAB_SIZE = 40


def tiny_run(tmp_path, *overrides):
    """A run configuration of configs/model/m5mmt.yaml at a tiny size."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=Path(__file__).parents[2]))
    return config.load(path, list(overrides))


def tiny_model(tmp_path, *overrides) -> M5ForPretraining:
    """Its model, in evaluation mode."""
    spec = tiny_run(tmp_path, *overrides).model
    settings = M5Config.from_spec(spec, vocab_size=VOCAB_SIZE, mask_id=4, special_ids=[0, 1, 2, 3, 4])
    return M5ForPretraining(settings).eval()


def tiny_batch(model, count=8, labels=None, **options):
    """Random rows; product i lacks some modalities unless it is the first."""
    present_BM = torch.tensor([[(i * 7 + m * 3) % 5 > 0 or i == 0 for m in range(5)] for i in range(count)])
    batch = random_batch(model.spec, options.pop("present_BM", present_BM), vocab_size=VOCAB_SIZE, **options)
    if labels is not None:
        batch.label_B = torch.as_tensor(labels)
    return batch
