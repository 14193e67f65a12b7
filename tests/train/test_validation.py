"""Validation in one process: which losses come from which forward, their divisors, and what is reported."""

from types import SimpleNamespace

import pytest
import torch
from model_cases import SEED, VOCAB_SIZE, build, run, tiny_spec

from m5ds.data.batches.random_batch import random_batch
from m5ds.kernels.common.philox import EVALUATION_DRAW
from m5ds.train import distributed
from m5ds.train.report import retrieval
from m5ds.train.validation import HeldOut, Sums, _retrieval

PRESENCE = [
    [[True] * 5, [True, True, False, True, True], [False, True, True, False, False]],
    [[True, True, True, False, True], [True] * 5, [False] * 5],
]


class Loaded:
    """Two evaluation batches; the last product of the second only pads it. Three media turn out damaged."""

    num_evaluation_steps = 2

    def __init__(self, model) -> None:
        self.closed = False
        self.batches = []
        for number, present in enumerate(PRESENCE):
            ids = [f"product-{number}-{i}" if any(row) else "" for i, row in enumerate(present)]
            batch = random_batch(model.spec, present, vocab_size=VOCAB_SIZE, ids=ids, draw=EVALUATION_DRAW)
            batch.label_B = torch.tensor([0, 1, 0] if number == 0 else [1, 0, -1])
            self.batches.append(batch)

    def evaluation_steps(self):
        for batch, bad in zip(self.batches, (["a"], ["b", "c"]), strict=True):
            yield SimpleNamespace(micro_batches=[batch], bad_media=bad)

    def close(self) -> None:
        self.closed = True


class Engine:
    """Stands for DeepSpeed's engine."""

    device = torch.device("cpu")

    def __init__(self, model) -> None:
        self.model, self.train, self.eval = model, model.train, model.eval

    def __call__(self, *arguments, **options):
        return self.model(*arguments, **options)


def job_of(model, objectives=None, validation=None, prepare=lambda batch: batch):
    """A job, and what was listed as damaged."""
    noted: list = []
    job = SimpleNamespace(
        model=model,
        engine=Engine(model),
        objectives=objectives,
        config=SimpleNamespace(seed=SEED),
        sources=SimpleNamespace(validation=validation),
        budget=SimpleNamespace(note=noted.append),
        prepare=prepare,
    )
    return job, noted


def validated(model, requested: int = 0, **options):
    loader = Loaded(model)
    job, noted = job_of(model, validation=loader, **options)
    report = HeldOut().measure(job, SimpleNamespace(requested=requested))
    assert model.training, "training goes on in training mode"
    return loader, report, noted


@pytest.fixture
def model(tmp_path):
    spec = tiny_spec(tmp_path, "dropout=0.3", "attention_dropout=0.2", "harmony={kind: cosine}")
    return build(spec)


def test_masked_losses_come_from_masked_input_and_contrastive_ones_from_clean_without_dropout(model):
    loader, report, noted = validated(model)
    model.eval()
    counts = [model.count_targets(batch, SEED) for batch in loader.batches]
    for masked in (True, False):
        ones = dict.fromkeys(counts[0], 1)
        outputs = [run(model, batch, ones, masked=masked) for batch in loader.batches]
        names = [name for name in counts[0] if name != "products" and name.startswith("itc/") != masked]
        assert len(names) == (5 if masked else 4)
        for name in names:
            summed = sum(output.losses[name].item() for output in outputs)
            assert report[f"loss/{name}"] == pytest.approx(summed / sum(count[name] for count in counts), rel=1e-5)
    assert noted == [["a", "b", "c"]]


def test_the_report_is_the_retrieval_of_clean_features_of_real_products(model):
    loader, report, _ = validated(model)
    model.eval()
    clean = [run(model, batch, masked=False) for batch in loader.batches]
    kept = [0, 1, 2, 3, 4]
    unimodal, fused = (torch.cat([getattr(o, what) for o in clean])[kept] for what in ("unimodal_BMD", "fused_BMD"))
    present = torch.cat([batch.present_BM for batch in loader.batches])[kept]
    label = torch.cat([batch.label_B for batch in loader.batches])[kept]
    assert report["products"] == 5
    pairs = retrieval.cross_modal(unimodal, present, model.names)
    assert pairs
    ratios = []
    for pair, metrics in pairs.items():
        assert {name: report[f"retrieval/{pair}/{name}"] for name in metrics} == pytest.approx(metrics)
        ratios.append(metrics["R@1"] / metrics["chance"])
    assert report["retrieval/average/ratio"] == pytest.approx(sum(ratios) / len(ratios))
    assert report["retrieval/worst/ratio"] == pytest.approx(min(ratios))
    by_category = retrieval.by_category(retrieval.fused_embedding(fused, present), label)
    assert by_category["size"] == 5
    assert {name: report[f"category/{name}"] for name in by_category} == pytest.approx(by_category)


def test_a_request_to_stop_ends_validation_without_a_report(model):
    loader, report, noted = validated(model, requested=15)
    assert report is None and loader.closed and noted == [[]]


def test_a_validation_that_stops_halfway_lists_the_damaged_files_that_it_met(model, monkeypatch):
    asked = iter([0.0, 1.0])
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: {"stop": next(asked)})
    _, report, noted = validated(model)
    assert report is None and noted == [["a"]]


def test_a_request_of_another_rank_stops_validation_here_too(model, monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: asked.append(values) or {"stop": 1.0})
    loader, report, _ = validated(model)
    assert report is None and loader.closed and asked == [{"stop": 0.0}]


def test_losses_without_a_target_anywhere_are_left_out_and_others_are_means(model, monkeypatch):
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: {key: 2 * item for key, item in values.items()})
    sums = Sums(job_of(model)[0])
    sums._sums = {"a": 6.0, "b": 0.0, "c": 5.0, "own/correct": 3.0, "own/none": 1.0}
    sums._targets = {"a": 4.0, "b": 0.0, "c": 1.0}
    sums._divisor = {"own/correct": "a", "own/none": "b"}
    assert sums.report() == {"loss/a": 1.5, "loss/c": 5.0, "own/correct": 0.75}


def test_losses_and_measures_are_divided_by_the_targets_of_all_ranks(tmp_path, monkeypatch):
    """Three labels on one rank and none on the other, and masks of another number: no mean of the ranks' means."""
    model = build(
        tiny_spec(tmp_path, "objectives.contrastive=null", "objectives.classification={num_classes: 2}")
    ).eval()
    batches = Loaded(model).batches
    batches[1].label_B = torch.tensor([-1, -1, -1])
    together, *ranks = (Sums(job_of(model)[0]) for _ in range(3))
    with torch.no_grad():
        for rank, batch in zip(ranks, batches, strict=True):
            rank.add(batch)
            together.add(batch)
    sent: list[dict] = []
    with monkeypatch.context() as alone:
        alone.setattr(distributed, "sum_over_ranks", lambda values: sent.append(values) or values)
        by_rank = [rank.report() for rank in ranks]
    assert list(sent[0]) == list(sent[1]), "ranks send the same values in the same order"
    monkeypatch.setattr(
        distributed, "sum_over_ranks", lambda values: {key: sent[0][key] + sent[1][key] for key in values}
    )
    reports = [rank.report() for rank in ranks]
    assert reports[0] == reports[1]
    monkeypatch.undo()
    assert reports[0] == pytest.approx(together.report())
    assert "classification/accuracy" in reports[0] and "classification/accuracy" not in by_rank[1]
    both = by_rank[0].keys() & by_rank[1].keys()
    means = {name: (by_rank[0][name] + by_rank[1][name]) / 2 for name in both}
    assert any(reports[0][name] != pytest.approx(means[name], rel=1e-4) for name in both), (
        "ranks weigh by their targets"
    )


def test_a_measure_is_the_share_of_its_targets_that_it_counts(tmp_path):
    model = build(tiny_spec(tmp_path, "objectives.classification={num_classes: 2}")).eval()
    sums = Sums(job_of(model, ("classification",))[0])
    batches = Loaded(model).batches
    right = []
    with torch.no_grad():
        for batch in batches:
            fused_BMD = sums.add(batch).fused_BMD
            logits_BC = model.objectives["classification"].head(fused_BMD.flatten(1), batch, SEED)[1]
            right += [
                guess == label
                for guess, label in zip(logits_BC.argmax(1).tolist(), batch.label_B.tolist(), strict=True)
                if label >= 0
            ]
    report = sums.report()
    assert set(report) == {"loss/classification", "classification/accuracy"} and len(right) == 5
    assert report["classification/accuracy"] == pytest.approx(sum(right) / 5)


class Measuring(Sums):
    """Writes down which objectives each pass evaluates."""

    def __init__(self, job) -> None:
        super().__init__(job)
        self.passes: list = []

    def _forward(self, batch, chosen, *, masked):
        self.passes.append((tuple(chosen), masked))
        return super()._forward(batch, chosen, masked=masked)


@pytest.mark.parametrize(
    ("objectives", "passes"),
    [
        (None, [(("masked",), True), (("contrastive",), False)]),
        (("masked",), [(("masked",), True), ((), False)]),
        (("contrastive",), [(("contrastive",), False)]),
    ],
)
def test_only_objectives_that_need_masks_see_a_masked_batch(model, objectives, passes):
    sums = Measuring(job_of(model.eval(), objectives)[0])
    with torch.no_grad():
        first, second = (sums.add(batch) for batch in Loaded(model).batches)
    clean = first
    assert sums.passes == passes * 2 and second.losses.keys() == first.losses.keys()
    assert clean.fused_BMD.shape[0] == 3
    wanted = {term.name for name in objectives or ("masked", "contrastive") for term in model.objectives[name].terms}
    assert {name.removeprefix("loss/") for name in sums.report()} == wanted


def test_without_a_validation_split_nothing_is_measured(model):
    job, noted = job_of(model)
    assert HeldOut().measure(job, SimpleNamespace(requested=0)) == {} and noted == []
    assert HeldOut.from_start and not HeldOut.finished


def test_batches_are_prepared_as_the_jobs_are(model):
    seen = []
    validated(model, prepare=lambda batch: seen.append(batch.ids) or batch)
    assert len(seen) == 2 and seen[0][0] == "product-0-0"


def products(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "product": torch.randperm(count, generator=generator),
        "label": torch.randint(-1, 2, (count,), generator=generator),
        "present": torch.rand(count, 2, generator=generator) > 0.3,
        "unimodal": torch.nn.functional.normalize(torch.randn(count, 2, 3, generator=generator), dim=-1),
        "fused": torch.randn(count, 2, 3, generator=generator),
    }


def test_the_dealing_of_products_to_ranks_does_not_matter():
    table = products(12)
    table["unimodal"][:] = table["unimodal"][:1]  # all tie: only the order could tell them apart
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    report = _retrieval({key: value[shuffled] for key, value in table.items()}, ("image", "text"))
    assert report == _retrieval(table, ("image", "text"))
    assert report["products"] == 12


def test_products_without_any_modality_are_no_part_of_the_categories():
    table = products(12)
    table["present"][3:6] = False
    kept = table["present"].any(dim=1)
    alone = _retrieval({key: value[kept] for key, value in table.items()}, ("image", "text"))
    whole = _retrieval(table, ("image", "text"))
    assert {**whole, "products": 0} == {**alone, "products": 0}
    assert whole["category/size"] < 12


def test_without_a_pair_there_are_no_ratios():
    table = products(4)
    table["present"][:, 1] = False
    report = _retrieval(table, ("image", "text"))
    assert not [name for name in report if name.startswith("retrieval/")]


def test_rank_0_reports_on_the_products_of_all_ranks_and_tells_the_others(model, monkeypatch):
    whole = validated(model)[1]
    sizes, parts = [], []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "feature_gather", sizes.append)
    monkeypatch.setattr(distributed, "sum_over_ranks", dict)
    monkeypatch.setattr(distributed, "gather_objects", lambda own: [own, None])
    monkeypatch.setattr(distributed, "broadcast_object", lambda own: own)
    # This rank has the first three products here, the other one the rest.
    monkeypatch.setattr(
        distributed,
        "gather_to_first",
        lambda table: (
            parts.append(table)
            or [{key: rows[cut] for key, rows in table.items()} for cut in (slice(3), slice(3, None))]
        ),
    )
    report = validated(model)[1]
    assert report == pytest.approx(whole)
    assert sizes == [[3, 3], [3, 3]] and len(parts[0]["product"]) == 5
    monkeypatch.setattr(distributed, "gather_to_first", lambda table: None)
    monkeypatch.setattr(distributed, "broadcast_object", lambda own: {"products": 99} if own is None else own)
    assert validated(model)[1]["products"] == 99
