"""Who is masked and what is counted, without a model."""

import dataclasses

import pytest
import torch
from model_cases import MASK_ID, SPECIAL_IDS, VOCAB_SIZE, batch_of, build, tiny_spec

from m5ds.kernels.embed_modalities import MaskSpec
from m5ds.model.configuration import M5Config
from m5ds.model.masking import draw_masks, mask_spec, mask_units

FULL = [[True] * 5] * 4


def config_of(spec) -> M5Config:
    return M5Config.from_spec(spec, vocab_size=VOCAB_SIZE, mask_id=MASK_ID, special_ids=SPECIAL_IDS)


def test_text_is_replaced_by_random_tokens_too_and_nothing_else_is(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.table.mask_unit=key_or_value", "modalities.text.mask_ratio=0.25")
    config = config_of(spec)
    found = {name: mask_spec(name, spec.modalities[name], config) for name in spec.modality_names}
    assert found["text"] == MaskSpec(
        threshold=2**30, unit="unit", text=True, mask_token=4, vocab_size=40, first_random_token=5
    )
    threshold = round(0.4 * 2**32)
    assert found["table"] == MaskSpec(
        threshold=threshold, unit="key_or_value", text=False, mask_token=4, vocab_size=0, first_random_token=0
    )
    assert found["image"] == MaskSpec(threshold=threshold, unit="unit", text=False, mask_token=4)


def test_nothing_is_masked_at_ratio_zero(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.text.mask_ratio=0.0")
    assert mask_spec("text", spec.modalities["text"], config_of(spec)) is None
    counts = build(spec).count_targets(batch_of(spec, FULL), 7)
    assert "mlm" not in counts and counts["mem"] > 0
    assert not draw_masks(batch_of(spec, FULL), config_of(spec), 7)["text"].any()


@pytest.mark.parametrize(
    ("name", "units", "refused"),
    [
        ("text", ("token",), "row"),
        ("table", ("pair", "token", "key_or_value"), "frame"),
        ("image", ("row",), "frame"),
        ("video", ("row", "frame"), "token"),
        ("audio", ("row", "frame"), "pair"),
    ],
)
def test_every_input_has_its_units(tmp_path, name, units, refused):
    spec = tiny_spec(tmp_path)
    for unit in units:
        assert mask_spec(name, dataclasses.replace(spec.modalities[name], mask_unit=unit), config_of(spec))
    with pytest.raises(ValueError, match=rf"mask_unit '{refused}' does not go with .*; use {' or '.join(units)}"):
        mask_spec(name, dataclasses.replace(spec.modalities[name], mask_unit=refused), config_of(spec))


@pytest.mark.parametrize("unit", ["pair", "token", "key_or_value"])
def test_units_are_numbers_of_rows_or_pairs_and_special_tokens_have_none(tmp_path, unit):
    spec = tiny_spec(tmp_path, f"modalities.table.mask_unit={unit}")
    rows = batch_of(spec, FULL).modalities["table"]
    special = rows.token_N[3].item()
    rows.unit_N[5] = -1
    found = mask_units(rows, spec.modalities["table"], [special, 39])
    for row in range(rows.num_rows):
        is_special = int(rows.token_N[row]) in (special, 39)
        own = rows.position_N[row] if unit == "token" else rows.unit_N[row]
        assert found[row] == (-1 if is_special or row == 5 else own)
    assert torch.equal(
        mask_units(rows, spec.modalities["table"], None)[:3], (found if unit == "token" else rows.unit_N)[:3]
    )


def test_given_special_tokens_take_the_place_of_the_configurations(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.text.mask_ratio=1.0", "modalities.table.mask_ratio=1.0")
    batch, config = batch_of(spec, FULL), config_of(spec)
    token_N = batch.modalities["table"].token_N
    chosen = int(token_N[0])
    assert draw_masks(batch, config, 7)["table"].all()
    assert torch.equal(draw_masks(batch, config, 7, [chosen])["table"], token_N != chosen)
    assert draw_masks(batch, config, 7, [])["table"].all()


def test_masks_depend_on_seed_draw_product_and_modality(tmp_path):
    spec = tiny_spec(tmp_path)
    config = config_of(spec)
    batch = batch_of(spec, FULL, full=True)
    base = draw_masks(batch, config, 7)
    others = {
        "seed": draw_masks(batch, config, 8),
        "draw": draw_masks(dataclasses.replace(batch, draw_B=batch.draw_B + 1), config, 7),
        "product": draw_masks(dataclasses.replace(batch, product_B=batch.product_B + 1), config, 7),
    }
    for name in spec.modality_names:
        for what, other in others.items():
            assert not torch.equal(base[name], other[name]), (name, what)
    assert not torch.equal(base["video"][:8], base["image"][:8])


def test_counts_are_of_masked_rows_and_of_products_that_have_both(tmp_path):
    spec = tiny_spec(tmp_path)
    batch = batch_of(
        spec, [[True] * 5, [True, True, False, False, False], [False, True, True, False, True], [False] * 5]
    )
    config = config_of(spec)
    masks = draw_masks(batch, config, 7)
    pairs = {"itc/image-text": 2, "itc/text-table": 2, "itc/table-video": 1, "itc/video-audio": 1, "products": 4}
    model = build(spec)
    assert model.count_targets(batch, 7, ("contrastive",)) == pairs
    tasks = {"mrp": "image", "mlm": "text", "mem": "table", "mfp": "video", "mam": "audio"}
    expected = pairs | {task: int(masks[name].sum()) for task, name in tasks.items()}
    assert model.count_targets(batch, 7) == expected
