"""One optimizer step on one rank, with an engine that does what DeepSpeed does: divide by the accumulation steps."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from closeness import assert_close

from m5ds import config
from m5ds.data.random_batch import random_batch
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train.distributed import RankError
from m5ds.train.step import MAX_SKIPPED, Diverged, TrainStep, take

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.ffn_dim=48", "model.contrastive.projection_dim=16"]
PRESENCE = [[True] * 5, [False, True, True, False, False], [True, True, False, True, True], [False] * 5]


class PlainEngine:
    """Stands for DeepSpeed's engine on one rank."""

    def __init__(self, model: M5ForPretraining, accumulation: int = 1, applied: bool = True) -> None:
        self.model, self.accumulation, self.applied = model, accumulation, applied
        self.num_steps = 0

    def __call__(self, *arguments, **keywords):
        return self.model(*arguments, **keywords)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self) -> None:
        self.num_steps += 1

    def was_step_applied(self) -> bool:
        return self.applied


def build(*overrides: str) -> M5ForPretraining:
    spec = config.load(ROOT / "configs/run/quickstart.yaml", [*SMALL, *overrides]).model
    return M5ForPretraining(M5Config.from_spec(spec, vocab_size=64, mask_id=4, special_ids=[0, 1, 2, 3, 4]))


def batch_of(model: M5ForPretraining, chosen: list[int], draw: int = 0):
    ids = [f"product-{i}" for i in chosen]
    return random_batch(model.spec, [PRESENCE[i] for i in chosen], vocab_size=64, ids=ids, draw=draw)


def taken(batches: list) -> SimpleNamespace:
    return SimpleNamespace(micro_batches=batches, num_decoded=7, bad_media=["x"])


def run(model: M5ForPretraining, batches: list, directory: Path, **engine) -> tuple[dict, PlainEngine]:
    plain = PlainEngine(model, len(batches), **engine)
    step = TrainStep(plain, model, seed=3, precision="bf16", directory=directory)
    return step(batches, step.announce(taken(batches), 0)), plain


def test_announcement_counts_targets_tokens_and_files(tmp_path: Path) -> None:
    model = build()
    batch = batch_of(model, [0, 1, 2, 3])
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    announced = step.announce(taken([batch]), 0)
    assert announced["products"] == 4
    assert announced["itc/image-text"] == 2
    assert announced["itc/text-table"] == 2
    assert announced["tokens/text"] == batch.modalities["text"].num_rows
    assert (announced["decoded"], announced["bad"], announced["stop"]) == (7, 1, 0)


@pytest.mark.parametrize("harmony", ["none", "learned", "cosine", "paper_literal"])
def test_accumulation_has_the_gradients_of_the_whole_batch_contrastive_included(tmp_path: Path, harmony: str) -> None:
    """In a later epoch and under dropout: the cache's two passes and the whole batch draw the same bits."""
    dropout = ("model.dropout=0.25", "model.attention_dropout=0.125")
    whole, parts = (build(f"model.harmony.kind={harmony}", *dropout) for _ in range(2))
    for name, parameter in [*whole.named_parameters(), *parts.named_parameters()]:
        if name == "harmony.scores":  # at zero most of their gradients vanish
            parameter.data = torch.linspace(0.5, 1.0, parameter.numel()).reshape(parameter.shape)
    losses, _ = run(whole, [batch_of(whole, [0, 1, 2, 3], draw=1)], tmp_path)
    accumulated, engine = run(parts, [batch_of(parts, [i], draw=1) for i in range(4)], tmp_path)
    assert engine.num_steps == 4
    assert accumulated == pytest.approx(losses, rel=1e-5)
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (parts, whole)]
    norm = torch.cat([gradient.flatten() for gradient in gradients[1].values()]).norm()
    # fp32 itself is 2e-6 of the norm away from float64 where contributions cancel.
    assert_close(*gradients, 1e-5, scale=norm.item(), roundings=32)


def test_loss_that_is_not_finite_stops_before_the_parameters_change(tmp_path: Path) -> None:
    model = build()
    batch = batch_of(model, [0, 1, 2, 3])
    batch.modalities["image"].values_NF[0] = torch.nan
    engine = PlainEngine(model)
    step = TrainStep(engine, model, seed=3, precision="bf16", directory=tmp_path)
    with pytest.raises(Diverged, match="a loss .*is not finite; the parameters were not changed"):
        step([batch], step.announce(taken([batch]), 0))
    assert engine.num_steps == 0
    report = json.loads((tmp_path / "not_finite.json").read_text())
    assert report["ids_by_rank"] == [[["product-0", "product-1", "product-2", "product-3"]]]


def test_discarded_step_is_fatal_except_under_loss_scaling(tmp_path: Path) -> None:
    model = build()
    batches = [batch_of(model, [0, 1])]
    with pytest.raises(Diverged, match="a gradient is not finite"):
        run(model, batches, tmp_path, applied=False)
    step = TrainStep(PlainEngine(model, applied=False), model, seed=3, precision="fp16", directory=tmp_path)
    step(batches, step.announce(taken(batches), 0))
    assert step.num_skipped == 1


def test_only_discarded_steps_in_a_row_end_an_fp16_run(tmp_path: Path) -> None:
    model = build("model.blocks.unimodal.repeat=1")
    engine = PlainEngine(model, applied=False)
    step = TrainStep(engine, model, seed=3, precision="fp16", directory=tmp_path)
    batches = [batch_of(model, [0])]
    announced = step.announce(taken(batches), 0)
    step.num_skipped = MAX_SKIPPED - 1
    step(batches, announced)
    assert step.num_skipped == MAX_SKIPPED
    with pytest.raises(Diverged, match="a gradient is not finite"):
        step(batches, announced)
    step.num_skipped, engine.applied = MAX_SKIPPED, True
    step(batches, announced)
    assert step.num_skipped == 0


def test_announcement_adds_up_micro_batches_and_tells_a_request_to_stop(tmp_path: Path) -> None:
    model = build()
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    batches = [batch_of(model, [0, 1]), batch_of(model, [2])]
    whole = step.announce(taken([batch_of(model, [0, 1, 2])]), 15)
    assert step.announce(taken(batches), 15) == whole
    assert whole["stop"] == 1 and whole["failed"] == 0


def test_users_error_of_the_loader_is_announced_and_other_errors_are_not_caught(tmp_path: Path) -> None:
    def broken(error: Exception):
        yield from ()
        raise error

    model = build()
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    failed = take(broken(ValueError("train/000000.tar:\n is missing")))
    with pytest.raises(RankError, match=r"train/000000.tar: is missing"):
        step.announce(failed, 0)
    with pytest.raises(AttributeError):
        take(broken(AttributeError()))
