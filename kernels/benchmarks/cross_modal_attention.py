"""cross_modal_attention against torch's attention: padded SDPA, unfused; on a GPU also FlexAttention and varlen.

Letters: B products, L padded rows, T packed rows, H heads, D head dim, M modalities.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m5ds.kernels.benchmarks.case import Case, Estimate, Provider, dtype_of
from m5ds.kernels.benchmarks.roofline import dense_work
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.common.tiles import ATTENTION_KERNELS
from m5ds.kernels.cross_modal_attention import cross_modal_attention
from m5ds.kernels.cross_modal_attention.planning.costs import attention_cost
from m5ds.kernels.cross_modal_attention.planning.tables import tables_for
from m5ds.kernels.cross_modal_attention.spec import AttentionSpec

LENGTHS = {
    "quickstart": (16, 24, 24, 8, 12),
    "paper": (37, 36, 64, 13, 81),
    "raw": (197, 36, 65, 295, 231),
}
"""Rows of image, text, table, video, audio: configs/run/quickstart.yaml (text and table at their longest), the paper's
231, and raw media as configs/model/m5mmt.yaml cuts them.
"""
HEADS = {"quickstart": (4, 32), "paper": (12, 64), "raw": (12, 64)}
"""Heads and their width."""
CPU_PRODUCTS = {"quickstart": 48, "paper": 8, "raw": 4}
GPU_PRODUCTS = 256
VISIBILITIES = {"identity": lambda i, j: i == j, "all": lambda i, j: True, "off_diagonal": lambda i, j: i != j}


def matrix_of(visibility: str) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(VISIBILITIES[visibility](i, j) for j in range(5)) for i in range(5))


def cases(device: torch.device, grid: str) -> Iterator[Case]:
    """Lengths x presence x visibility; on a CPU fewer products, and raw lengths whole only in the full grid."""
    if grid == "quick":
        yield _case(device, "paper", 0.5, "all", GPU_PRODUCTS if device.type == "cuda" else 2)
        return
    if grid == "short":
        for lengths, presence in (("paper", 0.5), ("paper", 1.0), ("raw", 0.5), ("raw", 1.0)):
            yield _case(device, lengths, presence, "all", GPU_PRODUCTS if device.type == "cuda" else 2)
        return
    for lengths in LENGTHS:
        for presence in (0.3, 0.5, 0.75, 1.0):
            for visibility in VISIBILITIES:
                if grid == "full" or lengths != "raw" or (visibility == "all" and presence in (0.5, 1.0)):
                    products = GPU_PRODUCTS if device.type == "cuda" else CPU_PRODUCTS[lengths]
                    yield _case(device, lengths, presence, visibility, products)


def _case(device: torch.device, lengths: str, presence: float, visibility: str, num_products: int) -> Case:
    dtype = dtype_of(device)
    layout = make_layout(lengths, presence, num_products).to(device)
    matrix, shape = matrix_of(visibility), (layout.num_rows, *HEADS[lengths])
    generator = torch.Generator().manual_seed(0)
    packed = [torch.randn(*shape, generator=generator).to(device, dtype) for _ in range(4)]
    ours = Provider(
        "packed (triton)" if device.type == "cuda" else "packed (torch path)",
        lambda q, k, v: cross_modal_attention(q, k, v, layout, matrix),
        tuple(x.requires_grad_() for x in packed[:3]),
        packed[3],
    )
    return Case(
        "cross_modal_attention",
        {
            "lengths": lengths,
            "presence": presence,
            "visibility": visibility,
            "products": num_products,
            "dtype": str(dtype),
        },
        [ours, *_peers(layout, LENGTHS[lengths], matrix, packed, visibility)],
        tolerance=2e-2 if dtype != torch.float32 else 1e-5,
        estimates=closed_form(lengths, presence, visibility),
        work=dense_work(ours, *_flops(layout, matrix, HEADS[lengths])),
    )


def _flops(layout: PackedLayout, matrix: tuple, heads: tuple[int, int]) -> tuple[int, int]:
    """Over visible pairs of rows: two products forward, five backward (the scores once more, as they are not kept)."""
    length_BM = layout.seg_len_BM.cpu().double()
    visible_MM = torch.tensor(matrix, dtype=torch.float64)
    pairs = int(torch.einsum("bi,ij,bj->", length_BM, visible_MM, length_BM))
    product = 2 * pairs * heads[0] * heads[1]
    return 2 * product, 5 * product


def make_layout(lengths: str, presence: float, num_products: int) -> PackedLayout:
    """Exactly `presence` of all slots filled. At the quickstart's lengths text and table vary, down to a third."""
    generator = torch.Generator().manual_seed(1)
    length_BM = torch.tensor(LENGTHS[lengths]).expand(num_products, 5).clone()
    if lengths == "quickstart":
        length_BM[:, 1:3] = torch.randint(8, 25, (num_products, 2), generator=generator)
    order = torch.randperm(num_products * 5, generator=torch.Generator().manual_seed(0))
    present_BM = (order < round(presence * order.numel())).view(num_products, 5)
    products = torch.arange(num_products)
    return PackedLayout.build(present_BM * length_BM, present_BM, products, torch.zeros_like(products))


def _peers(
    layout: PackedLayout, lengths: tuple[int, ...], matrix: tuple, packed: list[Tensor], visibility: str
) -> Iterator[Provider]:
    B, L, device = layout.num_products, sum(lengths), packed[0].device
    length_M = torch.tensor(lengths, device=device)
    base_M = length_M.cumsum(0) - length_M
    slot_T = layout.row_product_T * L + base_M[layout.row_modality_T] + layout.row_position_T

    def pad(x_THD: Tensor) -> Tensor:
        padded = x_THD.new_zeros(B * L, *x_THD.shape[1:]).index_copy(0, slot_T, x_THD.detach())
        return padded.view(B, L, *x_THD.shape[1:]).transpose(1, 2).contiguous()

    def unpad(x_BHLD: Tensor) -> Tensor:
        return x_BHLD.transpose(1, 2).reshape(B * L, *x_BHLD.shape[1::2]).index_select(0, slot_T)

    exists_BL = torch.zeros(B * L, dtype=torch.bool, device=device).index_fill(0, slot_T, True).view(B, L)
    modality_L = torch.arange(5, device=device).repeat_interleave(length_M)
    visible_LL = torch.tensor(matrix, device=device)[modality_L][:, modality_L]
    mask_BLL = visible_LL & exists_BL[:, None, :]
    # rows that see nothing are zero by definition; softmax over nothing would be NaN
    seen_BL = mask_BLL.any(-1) & exists_BL
    mask_B1LL = (mask_BLL | ~mask_BLL.any(-1, keepdim=True))[:, None]
    qkv, grad = tuple(pad(x).requires_grad_() for x in packed[:3]), pad(packed[3])
    keep_B1L1 = seen_BL[:, None, :, None]

    def padded_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask_B1LL).masked_fill(~keep_B1L1, 0.0)

    def unfused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (score.masked_fill(~mask_B1LL, float("-inf")).softmax(-1) @ v).masked_fill(~keep_B1L1, 0.0)

    yield Provider("padded SDPA", padded_sdpa, qkv, grad, unpad)
    yield Provider("padded unfused", unfused, qkv, grad, unpad)
    if device.type == "cuda":
        yield _flex(mask_B1LL, keep_B1L1, qkv, grad, unpad)
        if visibility == "all":
            yield _varlen(layout, packed)


def _flex(mask_B1LL: Tensor, keep_B1L1: Tensor, qkv: tuple[Tensor, ...], grad: Tensor, unpad) -> Provider:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    B, _, L, _ = mask_B1LL.shape
    block_mask = create_block_mask(
        lambda b, h, i, j: mask_B1LL[b, 0, i, j], B, None, L, L, device=str(mask_B1LL.device)
    )
    compiled = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=block_mask).masked_fill(~keep_B1L1, 0.0)

    return Provider("FlexAttention", run, qkv, grad, unpad)


def _varlen(layout: PackedLayout, packed: list[Tensor]) -> Provider:
    """Needs rows product by product: the permutation is not timed."""
    from torch.nn.attention.varlen import varlen_attn

    order_T = layout.row_product_T.argsort(stable=True)
    rows_B = layout.seg_len_BM.sum(1)
    cumulative = torch.cat([rows_B.new_zeros(1), rows_B.cumsum(0)]).to(torch.int32)
    longest = max(sum(row) for row in layout.lengths)
    qkvg = [x.detach().index_select(0, order_T) for x in packed]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attn(q, k, v, cumulative, cumulative, longest, longest)

    inverse_T = order_T.argsort()
    return Provider(
        "torch varlen",
        run,
        tuple(x.requires_grad_() for x in qkvg[:3]),
        qkvg[3],
        lambda x: x.index_select(0, inverse_T),
    )


def closed_form(lengths: str, presence: float, visibility: str) -> list[Estimate]:
    """Of each kernel, for 256 products, bf16 on sm_90, wherever this runs."""
    layout, (heads, head_dim) = make_layout(lengths, presence, GPU_PRODUCTS), HEADS[lengths]
    spec = AttentionSpec.build(5, matrix_of(visibility), None, None)
    options = {"arch": "sm_90", "head_dim": head_dim, "itemsize": 2}
    size = tables_for(layout, spec, **options).size
    costs = {k: attention_cost(k, layout, spec, heads=heads, size=size, **options) for k in ATTENTION_KERNELS}
    return [
        Estimate(f"{kernel} ({size})", cost.tensor_bytes + cost.table_bytes, cost.minimum_bytes, cost.flops)
        for kernel, cost in costs.items()
    ]
