"""Tiny models and batches that the model's tests share."""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m5ds import config
from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.data.batches.random_batch import random_batch
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining, M5Output
from m5ds.model.objectives.pool import Gathered, Pool

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 40
SPECIAL_IDS = [0, 1, 2, 3, 4]
MASK_ID = 4
SEED = 7

TINY = """
  hidden_size: 16
  num_heads: 2
  ffn_dim: 24
  dropout: 0.0
  modalities:
    image: {mask_ratio: 0.4, input: {size: 12, patch: 4}}
    text: {mask_ratio: 0.4, input: {max_tokens: 6}}
    table: {mask_ratio: 0.4, input: {max_tokens: 9}}
    video: {mask_ratio: 0.4, input: {frames: 4, size: 8, patch: 4}}
    audio: {mask_ratio: 0.4, input: {seconds: 0.6, num_mels: 16, patch_mels: 8}}
  blocks: {unimodal: {repeat: 2}}
  projection_dim: 8
"""


def tiny_spec(tmp_path: Path, *overrides: str, base: str = "m5mmt", text: str = TINY) -> ModelConfig:
    """The model section of configs/model/<base>.yaml at a tiny size, read as a user's run YAML is."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: tiny\nmodel:\n  base: {ROOT}/configs/model/{base}.yaml\n{text}\ntrain: {{total_steps: 1}}\n"
    )
    return config.load(path, [f"model.{override}" for override in overrides]).model


def build(spec: ModelConfig, **kwargs: Any) -> M5ForPretraining:
    """A model in training mode."""
    settings = M5Config.from_spec(spec, vocab_size=VOCAB_SIZE, mask_id=MASK_ID, special_ids=SPECIAL_IDS, **kwargs)
    return M5ForPretraining(settings).train()


def batch_of(spec: ModelConfig, present_BM: list[list[bool]] | Tensor, **kwargs: Any) -> Batch:
    """Random rows for the given presence."""
    return random_batch(spec, present_BM, vocab_size=VOCAB_SIZE, **kwargs)


def all_patterns(num_modalities: int = 5) -> list[list[bool]]:
    """Every presence pattern, the empty one first."""
    return [list(pattern) for pattern in itertools.product([False, True], repeat=num_modalities)]


def run(model: M5ForPretraining, batch: Batch, counts: dict[str, int] | None = None, **kwargs: Any) -> M5Output:
    """One forward with the batch's own counts unless others are given."""
    seed = kwargs.pop("seed", SEED)
    counts = counts or model.count_targets(batch, seed)
    return model(batch, counts=counts, seed=seed, **kwargs)


def gradients(model: M5ForPretraining) -> dict[str, Tensor]:
    """Every parameter's gradient by name; fails where one is missing."""
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient tensor: {missing}"
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def backward(model: M5ForPretraining, batch: Batch, **kwargs: Any) -> dict[str, Tensor]:
    """Gradients of one forward's loss."""
    model.zero_grad(set_to_none=True)
    output = run(model, batch, **kwargs)
    output.loss.backward()
    return gradients(model)


def select(batch: Batch, spec: ModelConfig, products: list[int], **kwargs: Any) -> Batch:
    """The named products of a random batch, as a batch of their own."""
    return batch_of(spec, batch.present_BM[products], ids=[batch.ids[b] for b in products], **kwargs)


def pools_of(model: M5ForPretraining, gather: Any) -> dict[str, Pool]:
    """How the model's objectives see the products that `gather` brings."""
    return {name: Gathered(loss, gather) for name, loss in model.objectives.global_losses().items()}


def concatenated_gather(features: list[Tensor], present: list[Tensor], own: int) -> Any:
    """What a cross-rank gather does, given every rank's features: rank `own`'s come from the call itself."""

    def gather(features_BMR: Tensor, present_BM: Tensor) -> tuple[Tensor, Tensor, int]:
        parts = [features_BMR if rank == own else value for rank, value in enumerate(features)]
        return torch.cat(parts), torch.cat(present), sum(len(value) for value in features[:own])

    return gather
