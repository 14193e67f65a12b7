"""The masks and replacements themselves: their units, their rates, their keys."""

import pytest
import torch

from m5ds.kernels.common import philox
from m5ds.kernels.embed_modalities import MaskSpec, draw_mask, replace_tokens

_ROWS = 40_000
_PRODUCT = torch.arange(_ROWS // 100).repeat_interleave(100) * 7919 - 10**12
_ROW = torch.arange(100).repeat(_ROWS // 100)
_DRAW = torch.zeros_like(_ROW)
_TEXT = MaskSpec(threshold=philox.threshold(0.15), text=True, mask_token=4, vocab_size=1000, first_random_token=5)


def _mask(spec: MaskSpec | None, unit_N: torch.Tensor = _ROW, part_N: torch.Tensor = _DRAW, **key: int) -> torch.Tensor:
    return draw_mask(
        unit_N, part_N, _PRODUCT, _DRAW + key.get("draw", 0), key.get("modality", 1), key.get("seed", 0), spec
    )


def test_the_ratio_is_met_and_units_are_masked_whole() -> None:
    masked_N = _mask(MaskSpec(threshold=philox.threshold(0.15)), _ROW // 4)
    assert abs(masked_N.float().mean().item() - 0.15) < 0.01
    by_unit = masked_N.view(-1, 4)
    assert torch.equal(by_unit.any(1), by_unit.all(1))


def test_probability_one_masks_all_but_unit_minus_one_and_zero_masks_none() -> None:
    unit_N = torch.where(_ROW == 0, -1, _ROW)
    assert torch.equal(_mask(MaskSpec(threshold=2**32), unit_N), _ROW != 0)
    assert not _mask(MaskSpec(threshold=0)).any()
    assert not _mask(None).any()


def test_key_or_value_masks_one_of_the_two_parts_evenly() -> None:
    spec = MaskSpec(threshold=philox.threshold(0.5), unit="key_or_value")
    by_pair = _mask(spec, _ROW // 2, _ROW % 2).view(-1, 2)
    assert not by_pair.all(1).any()
    assert abs(by_pair.any(1).float().mean().item() - 0.5) < 0.02
    assert abs(by_pair[by_pair.any(1), 0].float().mean().item() - 0.5) < 0.02


def test_seed_draw_and_modality_change_the_mask() -> None:
    spec = MaskSpec(threshold=philox.threshold(0.5))
    masks = [_mask(spec), _mask(spec, seed=1), _mask(spec, draw=1), _mask(spec, modality=2)]
    for a in range(4):
        for b in range(a):
            assert abs((masks[a] == masks[b]).float().mean().item() - 0.5) < 0.02


def test_text_replacement_is_80_10_10_and_leaves_unmasked_tokens_alone() -> None:
    token_N = torch.full((_ROWS,), 999)
    masked_N = _mask(_TEXT)
    seen_N = replace_tokens(token_N, masked_N, _ROW, _PRODUCT, _DRAW, 1, 0, _TEXT)
    assert torch.equal(seen_N[~masked_N], token_N[~masked_N])
    inside = seen_N[masked_N]
    assert abs((inside == 4).float().mean().item() - 0.8) < 0.02
    assert abs((inside == 999).float().mean().item() - 0.1) < 0.02
    drawn = inside[(inside != 4) & (inside != 999)]
    assert drawn.min() >= 5
    assert drawn.unique().numel() > 300


def test_table_replacement_is_always_the_mask_token() -> None:
    spec = MaskSpec(threshold=philox.threshold(0.3), mask_token=4)
    masked_N = _mask(spec)
    seen_N = replace_tokens(_ROW + 10, masked_N, _ROW, _PRODUCT, _DRAW, 2, 0, spec)
    assert torch.equal(seen_N, torch.where(masked_N, 4, _ROW + 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": -1}, "threshold"),
        ({"unit": "pair"}, "unit"),
        ({"text": True, "vocab_size": 5, "first_random_token": 5}, "first_random_token"),
    ],
)
def test_a_bad_spec_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSpec(**{"threshold": 0, **change})
