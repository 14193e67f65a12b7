"""The draws behind missing modalities and shuffled pairs, word by word."""

import numpy as np
import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds import modality
from m5ds.downstream.embed.presence import missing_at_random, shuffled_pairs, subsets, with_modalities, with_presence
from m5ds.kernels.common import philox

NAMES = ("image", "text", "table", "video", "audio")


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path)


def words(batch, seed, index):
    """[B, M]: the documented keys, one product and modality at a time."""
    rows = [
        [
            philox.random_words(
                seed=seed,
                draw=philox.EVALUATION_DRAW,
                product=product,
                stream=philox.Stream.MODALITY_DROPOUT,
                modality=modality.get(name).number,
                index=index,
            )[0]
            for name in batch.modalities
        ]
        for product in batch.product_B
    ]
    return np.array([[int(word) for word in row] for row in rows])


def test_subsets_come_small_ones_first_in_table_order():
    assert subsets(("a", "b", "c")) == [*(("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c"))]


def test_each_modality_is_lost_by_its_own_word_and_rate_and_the_last_one_stays(model):
    batch = tiny_batch(model, 30)
    rates = {"image": 0.8, "text": 0.9, "table": 0.7, "video": 0.9, "audio": 0.9}
    present, word = batch.present_BM.numpy(), words(batch, 4, 1)
    limit = np.array([rates.get(name, 0.0) * 2**32 for name in NAMES])
    kept = present & (word >= np.round(limit))
    rescue = np.where(present, words(batch, 4, 2), -1).argmax(1)
    lost = ~kept.any(1)
    assert lost.any()
    kept[lost, rescue[lost]] = True
    found = missing_at_random(batch, rates, 4).numpy() & present
    np.testing.assert_array_equal(found, kept)


def test_rates_of_zero_and_one_are_accepted(model):
    batch = tiny_batch(model, 6)
    assert (missing_at_random(batch, {"text": 0.0}, 0) & batch.present_BM).equal(batch.present_BM)
    assert not missing_at_random(batch, dict.fromkeys(NAMES, 1.0), 0).logical_and(batch.present_BM).any()
    only = missing_at_random(batch, {"text": 1.0, "image": 0.999999}, 0) & batch.present_BM
    assert not only[:, 1].any()
    shuffled_pairs(batch, 1.0, seed=0)
    for call in (lambda r: missing_at_random(batch, {"text": r}, 0), lambda r: shuffled_pairs(batch, r, 0)):
        for rate in (-0.01, 1.01):
            with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
                call(rate)


def pieces(rows):
    """Each product's rows of one modality, as lists."""
    values = rows.token_N if rows.values_NF is None else rows.values_NF
    return [part.tolist() for part in values.split(rows.length_B.tolist())]


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_the_drawn_products_pass_their_rows_on_in_a_cycle(model, rate):
    batch = tiny_batch(model, 12)
    mixed = shuffled_pairs(batch, rate, seed=7)
    drawn = (words(batch, 7, 3) < round(rate * 2**32)) & batch.present_BM.numpy()
    assert torch.equal(mixed.present_BM, batch.present_BM)
    for m, name in enumerate(NAMES):
        expected = pieces(batch.modalities[name])
        rows = np.flatnonzero(drawn[:, m])
        before = [expected[row] for row in rows]
        for row, content in zip(rows, [*before[-1:], *before[:-1]], strict=True):
            expected[row] = content
        assert pieces(mixed.modalities[name]) == expected, name
        positions = mixed.modalities[name].position_N.split(mixed.modalities[name].length_B.tolist())
        assert all(part.shape[0] == len(content) for part, content in zip(positions, expected, strict=True))


def test_a_modality_that_nobody_has_stays_empty(model):
    batch = tiny_batch(model, 3, present_BM=torch.tensor([[0, 1, 0, 0, 0]] * 3).bool())
    mixed = shuffled_pairs(batch, 1.0, seed=0)
    assert mixed.modalities["image"].num_rows == 0 and mixed.modalities["text"].num_rows > 0


def test_rows_that_all_stay_are_not_copied(model):
    batch = tiny_batch(model, 5)
    kept = with_presence(batch, batch.present_BM)
    assert all(kept.modalities[name] is batch.modalities[name] for name in NAMES)
    fewer = batch.present_BM.clone()
    fewer[0, 1] = False
    cut = with_presence(batch, fewer)
    assert pieces(cut.modalities["text"]) == [[], *pieces(batch.modalities["text"])[1:]]
    assert cut.modalities["image"] is batch.modalities["image"]


def test_only_named_modalities_are_present(model):
    cut = with_modalities(tiny_batch(model, 4), ("table",))
    assert cut.present_BM.shape == (4, 5) and not cut.present_BM[:, [0, 1, 3, 4]].any()
