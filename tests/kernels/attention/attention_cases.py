"""Layouts and visibility presets that the attention tests share. M modalities as in the paper: five."""

import torch
from torch import Tensor

from m5ds.kernels.common.layout import PackedLayout

M = 5
Matrix = tuple[tuple[bool, ...], ...]


def _matrix(cell) -> Matrix:
    return tuple(tuple(bool(cell(i, j)) for j in range(M)) for i in range(M))


VISIBILITY: dict[str, Matrix] = {
    "identity": _matrix(lambda i, j: i == j),
    "all": _matrix(lambda i, j: True),
    "others": _matrix(lambda i, j: i != j),
    "co_attention": _matrix(lambda i, j: {i, j} == {0, 1}),
    "image_text_joint": _matrix(lambda i, j: i < 2 and j < 2),
    "none": _matrix(lambda i, j: False),
}


def random_matrix(seed: int) -> Matrix:
    cells = torch.rand(M, M, generator=torch.Generator().manual_seed(seed)) < 0.5
    return tuple(tuple(row) for row in cells.tolist())


def make_layout(lengths: list[list[int]], seed: int = 0) -> PackedLayout:
    seg_len = torch.tensor(lengths, dtype=torch.int64).reshape(len(lengths), -1 if lengths else M)
    generator = torch.Generator().manual_seed(seed)
    products = torch.randint(-(2**62), 2**62, (len(lengths),), generator=generator)
    return PackedLayout.build(seg_len, seg_len > 0, products, torch.arange(len(lengths)) % 3)


def all_patterns(lengths: tuple[int, ...]) -> list[list[int]]:
    """One product for each of the 2 ** M presence patterns, the empty one included."""
    return [[n if pattern >> m & 1 else 0 for m, n in enumerate(lengths)] for pattern in range(2 ** len(lengths))]


def make_qkv(num_rows: int, heads: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(num_rows, heads, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkvg")


def run_with_gradients(op, qkv_grad: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """`op(q, k, v)` and its gradients by name."""
    *qkv, grad = qkv_grad
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv)
    out = op(q, k, v)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad)
    return {"out": out.detach(), "dq": dq, "dk": dk, "dv": dv}
