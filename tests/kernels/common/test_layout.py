"""Where rows lie: modality-major, products in order, no padding."""

import pytest
import torch

from m5ds.kernels.common.layout import PackedLayout


def build(lengths, present=None):
    seg_len = torch.tensor(lengths)
    present_BM = seg_len > 0 if present is None else torch.tensor(present)
    keys = torch.arange(len(lengths))
    return PackedLayout.build(seg_len, present_BM, keys, torch.zeros_like(keys))


def test_segments_tile_the_buffer_modality_by_modality():
    layout = build([[2, 3], [0, 1], [4, 0]])
    assert layout.slab == (0, 6, 10)
    assert layout.seg_start_BM.tolist() == [[0, 6], [2, 9], [2, 10]]
    assert layout.row_product_T.tolist() == [0, 0, 2, 2, 2, 2, 0, 0, 0, 1]
    assert layout.row_modality_T.tolist() == [0] * 6 + [1] * 4
    assert layout.row_position_T.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 0]
    assert layout.max_seg_len == 4


def test_an_empty_batch_has_no_rows():
    layout = build([[0, 0, 0]])
    assert (layout.num_rows, layout.max_seg_len, layout.row_product_T.numel()) == (0, 0, 0)


def test_policy_rows_are_not_presence():
    layout = build([[1, 2]], present=[[False, True]])
    assert layout.present_BM.tolist() == [[False, True]]
    assert layout.num_rows == 3


@pytest.mark.parametrize(
    ("lengths", "present", "message"),
    [([[-1]], [[False]], "negative"), ([[0]], [[True]], "without rows"), ([[1]], [[True, True]], "must both be")],
)
def test_contradictions_are_refused(lengths, present, message):
    with pytest.raises(ValueError, match=message):
        build(lengths, present)
