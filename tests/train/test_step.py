"""One optimizer step on one rank, with an engine that does what DeepSpeed does: divide by the accumulation steps."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from closeness import assert_close

from m5ds import config
from m5ds.data.batches.random_batch import random_batch
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train import distributed
from m5ds.train.distributed import RankError
from m5ds.train.step import MAX_SKIPPED, Diverged, TrainStep, next_step

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.ffn_dim=48", "model.projection_dim=16"]
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


def prepared(batches: list) -> SimpleNamespace:
    return SimpleNamespace(micro_batches=batches, num_decoded=7, bad_media=["x"])


def run(model: M5ForPretraining, batches: list, directory: Path, **engine) -> tuple[dict, PlainEngine]:
    plain = PlainEngine(model, len(batches), **engine)
    step = TrainStep(plain, model, seed=3, precision="bf16", directory=directory)
    return step(batches, step.count(prepared(batches), 0)), plain


def test_counts_are_of_targets_tokens_and_files(tmp_path: Path) -> None:
    model = build()
    batch = batch_of(model, [0, 1, 2, 3])
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    counts = step.count(prepared([batch]), 0)
    assert counts["products"] == 4
    assert counts["itc/image-text"] == 2
    assert counts["itc/text-table"] == 2
    assert counts["tokens/text"] == batch.modalities["text"].num_rows
    assert (counts["decoded"], counts["bad"], counts["stop"]) == (7, 1, 0)


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
        step([batch], step.count(prepared([batch]), 0))
    assert engine.num_steps == 0
    report = json.loads((tmp_path / "not_finite.json").read_text())
    assert report["ids_by_rank"] == [[["product-0", "product-1", "product-2", "product-3"]]]


def test_discarded_step_is_fatal_except_under_loss_scaling(tmp_path: Path) -> None:
    model = build()
    batches = [batch_of(model, [0, 1])]
    with pytest.raises(Diverged, match="a gradient is not finite"):
        run(model, batches, tmp_path, applied=False)
    step = TrainStep(PlainEngine(model, applied=False), model, seed=3, precision="fp16", directory=tmp_path)
    step(batches, step.count(prepared(batches), 0))
    assert step.num_skipped == 1


def test_only_discarded_steps_in_a_row_end_an_fp16_run(tmp_path: Path) -> None:
    model = build("model.blocks.unimodal.repeat=1")
    engine = PlainEngine(model, applied=False)
    step = TrainStep(engine, model, seed=3, precision="fp16", directory=tmp_path)
    batches = [batch_of(model, [0])]
    counts = step.count(prepared(batches), 0)
    step.num_skipped = MAX_SKIPPED - 1
    step(batches, counts)
    assert step.num_skipped == MAX_SKIPPED
    with pytest.raises(Diverged, match="a gradient is not finite"):
        step(batches, counts)
    step.num_skipped, engine.applied = MAX_SKIPPED, True
    step(batches, counts)
    assert step.num_skipped == 0


def test_counts_add_up_micro_batches_and_tells_a_request_to_stop(tmp_path: Path) -> None:
    model = build()
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    batches = [batch_of(model, [0, 1]), batch_of(model, [2])]
    whole = step.count(prepared([batch_of(model, [0, 1, 2])]), 15)
    assert step.count(prepared(batches), 15) == whole
    assert whole["stop"] == 1 and whole["failed"] == 0


def test_users_error_of_the_loader_is_counted_and_other_errors_are_not_caught(tmp_path: Path) -> None:
    def broken(error: Exception):
        yield from ()
        raise error

    model = build()
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    failed = next_step(broken(ValueError("train/000000.tar:\n is missing")))
    with pytest.raises(RankError, match=r"train/000000.tar: is missing"):
        step.count(failed, 0)
    with pytest.raises(AttributeError):
        next_step(broken(AttributeError()))


class Noting(PlainEngine):
    """Keeps what was given to the forward and to backward."""

    def __init__(self, model: M5ForPretraining) -> None:
        super().__init__(model)
        self.calls, self.backwards, self.outputs = [], [], []

    def __call__(self, batch, **keywords):
        self.calls.append((batch, keywords))
        self.outputs.append(super().__call__(batch, **{**keywords, "pools": None}))
        return self.outputs[-1]

    def backward(self, loss: torch.Tensor) -> None:
        self.backwards.append(loss.item())


@pytest.mark.parametrize("products", [[[0, 1, 2]], [[0], [1], [2]]])
def test_what_deepspeed_divides_by_is_multiplied_in(tmp_path: Path, monkeypatch, products) -> None:
    """DeepSpeed averages over 2 ranks and over the accumulation steps; the losses are sums over global counts."""
    sizes = []

    def feature_gather(given):
        sizes.append(given)

    model = build("model.objectives.contrastive=null") if len(products) > 1 else build()
    engine = Noting(model)
    step = TrainStep(engine, model, seed=3, precision="bf16", directory=tmp_path)
    batches = [batch_of(model, chosen) for chosen in products]
    counts = step.count(prepared(batches), 0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "feature_gather", feature_gather)
    monkeypatch.setattr(distributed, "sum_over_ranks", dict)
    losses = step(batches, counts)
    assert engine.backwards == pytest.approx([2 * len(products) * out.loss.item() for out in engine.outputs])
    assert losses["total"] == pytest.approx(sum(out.loss.item() for out in engine.outputs))
    for name in step.loss_names:
        assert losses[name] == pytest.approx(sum(out.losses[name].item() for out in engine.outputs))
    # One gather of all micro-batches' products, where some objective compares products.
    assert sizes == ([[3, 3]] if len(products) == 1 else [])
    whole = {name: int(counts[name]) for name in ("products", *step.loss_names)}
    for _, keywords in engine.calls:
        pools = keywords.pop("pools")
        assert list(pools) == (["contrastive"] if len(products) == 1 else [])
        assert keywords == {"counts": whole, "seed": 3, "masked": True, "chosen": tuple(model.objectives)}
    assert len(engine.calls) == len(products)
    assert engine.num_steps == len(products)


def test_under_accumulation_the_pool_is_that_of_all_ranks_products(tmp_path: Path, monkeypatch) -> None:
    sizes = []
    model = build("model.blocks.unimodal.repeat=1")
    step = TrainStep(PlainEngine(model, 2), model, seed=3, precision="bf16", directory=tmp_path)
    batches = [batch_of(model, [0, 1]), batch_of(model, [2])]
    counts = step.count(prepared(batches), 0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "feature_gather", sizes.append)
    monkeypatch.setattr(distributed, "sum_over_ranks", dict)
    step(batches, counts)
    assert sizes == [[3, 3]], "one gather of the features of the whole step"


def test_a_loader_that_failed_elsewhere_stops_this_rank_with_that_ranks_message(tmp_path: Path, monkeypatch) -> None:
    model = build()
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    told = []
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda local: {**local, "failed": 1.0})
    monkeypatch.setattr(distributed, "gather_objects", lambda own: told.append(own) or [own, "shard is gone"])
    with pytest.raises(RankError, match="^rank 1: shard is gone$"):
        step.count(prepared([batch_of(model, [0])]), 0)
    assert told == [None]
    with pytest.raises(RankError, match="^own error$"):
        step.count(OSError("own\nerror"), 0)


def test_a_failed_loader_announces_itself_and_no_files(tmp_path: Path, monkeypatch) -> None:
    model, sent = build(), []
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda local: sent.append(local) or {**local, "failed": 0})
    step.count(ValueError("x"), 0)
    assert set(sent[0].values()) == {0, True} and sent[0]["failed"] is True
    step.count(prepared([batch_of(model, [0])]), 0)
    assert sent[1]["failed"] is False and list(sent[1]) == list(sent[0]), "the same keys in the same order"


def test_an_error_of_the_disk_is_the_loaders_too(tmp_path: Path) -> None:
    def steps(error: Exception | None):
        if error is not None:
            raise error
        yield "batches"

    error = OSError("disk")
    assert next_step(steps(error)) is error
    assert next_step(steps(None)) == "batches"


def test_divergence_names_the_losses_and_rank_0_lists_the_products_of_all(tmp_path: Path, monkeypatch) -> None:
    model = build("model.blocks.unimodal.repeat=1")
    step = TrainStep(PlainEngine(model), model, seed=3, precision="bf16", directory=tmp_path)
    batches = [batch_of(model, [0, 1])]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [["elsewhere"], own])
    losses = {"mlm": float("inf"), "mrp": 1.0, "total": float("nan")}
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    path = tmp_path / "not_finite.json"
    with pytest.raises(Diverged, match=rf"^a loss \(mlm, total\) is not finite; .* {path} lists the products"):
        raise step._diverged("loss", batches, losses)
    assert not path.exists()
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    step._diverged("gradient", batches, losses)
    report = json.loads(path.read_text())
    assert report["losses"] == {"mlm": "inf", "mrp": "1.0", "total": "nan"} and report["what"] == "gradient"
    assert report["ids_by_rank"] == [["elsewhere"], [["product-0", "product-1"]]]
    monkeypatch.setattr(distributed, "gather_objects", lambda own: ["台灯"])
    step._diverged("loss", batches, {})
    assert path.read_text() == '{\n "what": "loss",\n "losses": {},\n "ids_by_rank": [\n  "台灯"\n ]\n}'


def test_only_chosen_objectives_are_counted_and_minimised_and_clean_ones_see_no_mask(tmp_path: Path) -> None:
    model = build("model.blocks.unimodal.repeat=1")
    engine = Noting(model)
    options = {"seed": 3, "precision": "bf16", "directory": tmp_path}
    step = TrainStep(engine, model, objectives=("contrastive",), **options)
    assert step.loss_names == [term.name for term in model.objectives.contrastive.terms]
    batches = [batch_of(model, [0, 1, 2])]
    counts = step.count(prepared(batches), 0)
    assert "mlm" not in counts and counts["itc/text-table"] == 2
    losses = step(batches, counts)
    assert set(losses) == {*step.loss_names, "total"}
    assert engine.calls[0][1]["masked"] is False and engine.calls[0][1]["chosen"] == ("contrastive",)
    assert TrainStep(engine, model, objectives=("masked",), **options).masked
