"""Subsets, missing rates and shuffled pairs of decoded batches."""

import pytest
import torch
from downstream_examples import VOCAB_SIZE, tiny_batch, tiny_model

from m5ds.data.batches.random_batch import random_batch
from m5ds.downstream.embed.presence import missing_at_random, shuffled_pairs, subsets, with_modalities, with_presence

NAMES = ("image", "text", "table", "video", "audio")


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path)


def same_rows(a, b):
    for name in a.modalities:
        for field in ("length_B", "position_N", "unit_N", "part_N", "values_NF", "token_N"):
            x, y = getattr(a.modalities[name], field), getattr(b.modalities[name], field)
            assert (x is None and y is None) or torch.equal(x, y), (name, field)


def test_there_are_31_subsets_of_five_and_each_is_in_table_order():
    found = subsets(NAMES)
    assert len(found) == len(set(found)) == 31
    assert found[0] == ("image",) and found[-1] == NAMES


def test_a_batch_without_modalities_equals_one_that_never_had_them(model):
    whole = tiny_batch(model)
    keep_BM = torch.tensor([[(i + m) % 3 > 0 for m in range(5)] for i in range(8)])
    never_had = random_batch(model.spec, whole.present_BM & keep_BM, vocab_size=VOCAB_SIZE)
    cut = with_presence(whole, keep_BM)
    same_rows(cut, never_had)
    assert torch.equal(cut.present_BM, never_had.present_BM)


def test_named_modalities_are_all_that_is_left(model):
    batch = with_modalities(tiny_batch(model), ("text", "audio"))
    for m, name in enumerate(NAMES):
        assert (batch.modalities[name].num_rows > 0) == (name in ("text", "audio")), name
        assert batch.present_BM[:, m].any() == (name in ("text", "audio"))


def test_the_original_batch_stays_as_it_was(model):
    batch = tiny_batch(model)
    before = tiny_batch(model)
    with_modalities(batch, ("text",))
    shuffled_pairs(batch, 1.0, seed=0)
    same_rows(batch, before)


def test_what_is_missing_at_a_low_rate_is_missing_at_every_higher_one(model):
    batch = tiny_batch(model, 200)
    kept = [missing_at_random(batch, dict.fromkeys(NAMES, rate), seed=1) & batch.present_BM for rate in (0, 0.3, 0.6)]
    assert torch.equal(kept[0], batch.present_BM)
    several_B = kept[2].sum(1) > 1
    assert not (kept[2][several_B] & ~kept[1][several_B]).any()
    share = 1 - kept[1].sum() / batch.present_BM.sum()
    assert 0.2 < share < 0.4


def test_a_product_keeps_one_modality_at_any_random_rate(model):
    batch = tiny_batch(model, 100)
    assert missing_at_random(batch, dict.fromkeys(NAMES, 0.95), seed=1).logical_and(batch.present_BM).any(1).all()


def test_a_modality_of_rate_one_is_gone_even_from_products_that_have_no_other(model):
    present_BM = torch.tensor([[True, False, False, False, False], [True, True, False, False, False]])
    kept_BM = missing_at_random(tiny_batch(model, 2, present_BM=present_BM), {"image": 1.0}, seed=0) & present_BM
    assert kept_BM.tolist() == [[False] * 5, [False, True, False, False, False]]


def test_missing_draws_belong_to_the_product(model):
    rates = dict.fromkeys(NAMES, 0.5)
    whole = missing_at_random(tiny_batch(model, 8), rates, seed=3)
    alone = missing_at_random(tiny_batch(model, 1, ids=["product-5"], present_BM=torch.ones(1, 5)), rates, seed=3)
    assert torch.equal(whole[5], alone[0]) or tiny_batch(model).present_BM[5].sum() < 5


def test_shuffled_pairs_keep_each_modality_and_change_who_has_it(model):
    batch = tiny_batch(model, 6, present_BM=torch.ones(6, 5, dtype=torch.bool))
    mixed = shuffled_pairs(batch, 1.0, seed=0)
    assert torch.equal(mixed.present_BM, batch.present_BM)
    rows, new = batch.modalities["text"], mixed.modalities["text"]
    pieces = rows.token_N.split(rows.length_B.tolist())
    moved = new.token_N.split(new.length_B.tolist())
    for b in range(6):
        assert torch.equal(moved[b], pieces[(b - 1) % 6])
    assert sorted(new.token_N.tolist()) == sorted(rows.token_N.tolist())


def test_no_pair_is_shuffled_at_rate_zero(model):
    batch = tiny_batch(model)
    same_rows(shuffled_pairs(batch, 0.0, seed=0), batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda batch: missing_at_random(batch, {"smell": 0.1}, 0), "missing rate for 'smell'; the model has image"),
        (lambda batch: missing_at_random(batch, {"text": 1.5}, 0), r"missing rate of text must lie in \[0, 1\]"),
        (lambda batch: shuffled_pairs(batch, -0.1, 0), r"shuffle rate must lie in \[0, 1\]"),
    ],
)
def test_impossible_rates_are_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_batch(model, 2))
