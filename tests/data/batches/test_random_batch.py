"""Random batches: legal rows of every input kind, a function of (seed, product, modality) alone; and moving a batch."""

import torch

from m5ds.config import ModalityConfig, ModelConfig
from m5ds.data.batches.random_batch import random_batch
from m5ds.inputs import FeatureRows, RegionFeatures, TablePairs, TextTokens
from m5ds.kernels.common.philox import product_hash


def of(**inputs):
    return ModelConfig(
        modalities={name: ModalityConfig(input=spec, embedder="any", head="any") for name, spec in inputs.items()}
    )


SPEC = of(
    image=RegionFeatures(max_regions=6, dim=3),
    text=TextTokens(max_tokens=7),
    table=TablePairs(max_tokens=8),
    video=FeatureRows(rows=4, dim=2),
)
ALL = torch.ones(60, 4, dtype=torch.bool)


def pieces(batch, name, field):
    rows = batch.modalities[name]
    return getattr(rows, field).split(rows.length_B.tolist())


def test_rows_are_legal_for_their_kind():
    batch = random_batch(SPEC, ALL, vocab_size=12, first_token=5, cls_token=2, draw=3)
    lengths = {name: rows.length_B.tolist() for name, rows in batch.modalities.items()}
    # A text has its first token and another at least; every length occurs.
    assert {name: sorted(set(length)) for name, length in lengths.items()} == {
        "image": [1, 2, 3, 4, 5, 6],
        "text": [2, 3, 4, 5, 6, 7],
        "table": [2, 3, 4, 5, 6, 7, 8],
        "video": [1, 2, 3, 4],
    }
    for name, rows in batch.modalities.items():
        assert rows.num_rows == sum(lengths[name])
        for length, position in zip(lengths[name], pieces(batch, name, "position_N"), strict=True):
            assert position.tolist() == list(range(length))
    for token, unit in zip(pieces(batch, "text", "token_N"), pieces(batch, "text", "unit_N"), strict=True):
        assert token[0] == 2 and unit.tolist() == [-1, *range(1, len(unit))]
        assert ((token[1:] >= 5) & (token[1:] < 12)).all()
    assert set(batch.modalities["text"].token_N.tolist()) == {2, *range(5, 12)}
    for unit, part in zip(pieces(batch, "table", "unit_N"), pieces(batch, "table", "part_N"), strict=True):
        assert unit.tolist() == [0, 0, 0, 1, 1, 1, 2, 2][: len(unit)]
        assert part.tolist() == [0, 1, 1, 0, 1, 1, 0, 1][: len(part)]
    for name in ("image", "text", "video"):
        assert not batch.modalities[name].part_N.any()
    assert batch.modalities["image"].values_NF.shape[1] == 3
    assert batch.modalities["image"].geometry_N5.shape[1] == 5
    assert batch.modalities["video"].geometry_N5 is None and batch.modalities["video"].token_N is None
    assert batch.draw_B.tolist() == [3] * 60 and batch.label_B.tolist() == [-1] * 60
    assert batch.ids[7] == "product-7" and batch.product_B[7] == product_hash("product-7")
    assert batch.num_products == 60
    assert batch.num_tokens == sum(sum(length) for length in lengths.values())


def test_full_batches_have_every_row():
    batch = random_batch(SPEC, ALL[:3], vocab_size=12, full=True)
    assert [rows.length_B.tolist() for rows in batch.modalities.values()] == [[6] * 3, [7] * 3, [8] * 3, [4] * 3]


def test_a_products_rows_depend_on_it_its_modality_and_the_seed_alone():
    whole = random_batch(SPEC, ALL[:3], vocab_size=12, ids=["a", "b", "c"])
    alone = random_batch(SPEC, [[True, True, False, True]], vocab_size=12, ids=["b"])
    for name, field in (("image", "values_NF"), ("image", "geometry_N5"), ("text", "token_N"), ("video", "values_NF")):
        assert torch.equal(pieces(whole, name, field)[1], getattr(alone.modalities[name], field))
    assert alone.modalities["table"].num_rows == 0 and alone.modalities["table"].token_N.dtype == torch.int64
    other = random_batch(SPEC, ALL[:3], vocab_size=12, ids=["a", "b", "c"], seed=1)
    assert not torch.equal(whole.modalities["image"].values_NF, other.modalities["image"].values_NF)


def test_absent_modalities_have_no_rows_but_tensors_of_the_right_shape():
    batch = random_batch(SPEC, torch.zeros(2, 4), vocab_size=12)
    assert not batch.present_BM.any() and batch.num_tokens == 0
    for name, width in (("image", 3), ("video", 2)):
        assert batch.modalities[name].values_NF.shape == (0, width)
        assert batch.modalities[name].length_B.tolist() == [0, 0]
    assert batch.modalities["image"].geometry_N5.shape == (0, 5)


def test_moving_a_batch_moves_rows_and_leaves_what_the_host_plans_with():
    batch = random_batch(SPEC, ALL[:2], vocab_size=12)
    moved = batch.to("meta")
    for name, rows in moved.modalities.items():
        assert rows.length_B.device.type == "cpu"
        fields = ("position_N", "unit_N", "part_N", "values_NF", "token_N", "geometry_N5")
        tensors = [getattr(rows, field) for field in fields if getattr(batch.modalities[name], field) is not None]
        assert len(tensors) >= 4 and all(tensor.device.type == "meta" for tensor in tensors)
    for field in ("product_B", "draw_B", "label_B", "present_BM"):
        assert getattr(moved, field).device.type == "cpu"
    assert batch.modalities["image"].values_NF.device.type == "cpu"


def test_by_default_tokens_begin_at_five_and_texts_with_two():
    batch = random_batch(SPEC, ALL, vocab_size=8)
    assert set(batch.modalities["text"].token_N.tolist()) == {2, 5, 6, 7}
    assert set(batch.modalities["table"].token_N.tolist()) == {5, 6, 7}
    assert batch.draw_B.tolist() == [0] * 60
    again = random_batch(SPEC, ALL, vocab_size=8, seed=0, full=False)
    assert torch.equal(again.modalities["image"].values_NF, batch.modalities["image"].values_NF)
    other = random_batch(SPEC, ALL, vocab_size=8, first_token=7, cls_token=3)
    assert set(other.modalities["text"].token_N.tolist()) == {3, 7}


def test_an_input_of_one_row_is_legal():
    spec = of(image=FeatureRows(rows=1, dim=2), text=TextTokens(max_tokens=1), table=TablePairs(max_tokens=1))
    batch = random_batch(spec, ALL[:20, :3], vocab_size=9)
    assert all(rows.length_B.tolist() == [1] * 20 for rows in batch.modalities.values())
    assert batch.modalities["text"].token_N.tolist() == [2] * 20


def test_presence_is_that_of_the_lengths_in_any_pattern():
    pattern = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    batch = random_batch(SPEC, pattern, vocab_size=9)
    for m, rows in enumerate(batch.modalities.values()):
        assert torch.equal(rows.length_B > 0, pattern[:, m])
        assert rows.num_rows == int(rows.length_B.sum())
    assert torch.equal(batch.present_BM, pattern) and batch.present_BM.dtype == torch.bool
    boxes = batch.modalities["image"].geometry_N5
    assert boxes.min() >= 0 and boxes.max() < 1
    assert batch.product_B.dtype == batch.draw_B.dtype == batch.label_B.dtype == torch.int64
