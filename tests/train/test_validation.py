"""Validation in one process: which losses come from which forward, their divisors, and what is reported."""

from types import SimpleNamespace

import pytest
import torch
from model_cases import SEED, VOCAB_SIZE, build, run, tiny_spec

from m5ds.data.random_batch import random_batch
from m5ds.kernels.philox import EVALUATION_DRAW
from m5ds.model.masking import count_targets
from m5ds.train import retrieval
from m5ds.train.validation import validate

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


def validated(model, requested: int = 0):
    loader, noted = Loaded(model), []
    stop, budget = SimpleNamespace(requested=requested), SimpleNamespace(note=noted.append)
    report = validate(model, model, loader, stop, budget, seed=SEED, device=torch.device("cpu"))
    assert model.training, "training goes on in training mode"
    return loader, report, noted


@pytest.fixture
def model(tmp_path):
    spec = tiny_spec(tmp_path, "dropout=0.3", "attention_dropout=0.2", "harmony={kind: cosine}")
    return build(spec)


def test_masked_losses_come_from_masked_input_and_contrastive_ones_from_clean_without_dropout(model):
    loader, report, noted = validated(model)
    model.eval()
    counts = [count_targets(batch, model.config, SEED) for batch in loader.batches]
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
    assert report is None and loader.closed and not noted
