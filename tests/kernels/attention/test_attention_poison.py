"""A NaN reaches the rows that see it and no other, forward and backward, however the CPU path groups the rows."""

import pytest
import torch
from attention_cases import VISIBILITY, M, make_layout, make_qkv, random_matrix, run_with_gradients

from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.cross_modal_attention.planning import plan

MATRICES = VISIBILITY | {f"random_{seed}": random_matrix(seed) for seed in range(3)}
LENGTHS = [[2, 1, 3, 1, 2], [0, 3, 0, 2, 0], [2, 0, 0, 0, 0]]
OPTIONS = {
    "plain": {},
    "causal": {"causal": (1, 1, 0, 0, 1)},
    "updates": {"causal": (0, 0, 1, 0, 0), "updates": (1, 0, 1, 1, 0)},
    "dropout": {"causal": (0, 1, 0, 1, 0), "dropout": 0.3, "seed": 3, "layer": 2},
}


def sees(layout, matrix, options) -> torch.Tensor:
    """bool [T, T]: query row t sees key row s."""
    product, modality, position = layout.row_product_T, layout.row_modality_T, layout.row_position_T
    visible_MM = torch.tensor(matrix) & torch.tensor(options.get("updates", (1,) * M), dtype=torch.bool)[:, None]
    found = (product[:, None] == product) & visible_MM[modality[:, None], modality]
    causal = torch.tensor(options.get("causal", (0,) * M), dtype=torch.bool)[modality]
    own = modality[:, None] == modality
    return found & ~(causal[:, None] & own & (position > position[:, None]))


@pytest.mark.parametrize("grouping", ["separate_groups", "joint_group"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MATRICES)
def test_a_row_reaches_only_rows_that_see_it(name, option, grouping, monkeypatch):
    groups_of = getattr(plan, grouping)
    monkeypatch.setattr(plan, "separate_groups", groups_of)
    monkeypatch.setattr(plan, "joint_group", groups_of)
    layout, options = make_layout(LENGTHS), OPTIONS[option]
    sees_TT = sees(layout, MATRICES[name], options)
    q, k, v, grad = make_qkv(layout.num_rows, 2, 4, torch.float64)

    def op(*qkv):
        return cross_modal_attention(*qkv, layout, MATRICES[name], path="torch", **options)

    for poisoned in range(0, layout.num_rows, 2):
        for with_query, value in ((False, float("nan")), (True, float("inf"))):
            reached = sees_TT[:, poisoned].clone()
            reached[poisoned] |= with_query & sees_TT[poisoned].any()
            # What is not finite gives no gradient that could be asked for.
            asked = grad.masked_fill(reached[:, None, None], 0.0)
            clean = run_with_gradients(op, (q, k, v, asked))
            bad = [x.clone() for x in (q, k, v)]
            for x in bad if with_query else bad[1:]:
                x[poisoned] = value
            found = run_with_gradients(op, (*bad, asked))
            assert not found["out"][reached].isfinite().any(), "a visible NaN must not be hidden"
            torch.testing.assert_close(found["out"][~reached], clean["out"][~reached], rtol=1e-10, atol=1e-12)
            for gradient in ("dq", "dk", "dv"):
                torch.testing.assert_close(found[gradient], clean[gradient], rtol=1e-10, atol=1e-12, msg=gradient)
