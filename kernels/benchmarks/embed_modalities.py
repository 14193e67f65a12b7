"""embed_modalities against the chain of torch ops that it replaces: one op per step, rows packed at the end.

Letters: B products, N content rows of a modality, D width.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm

from m5ds.kernels.benchmarks.case import Case, Estimate, Provider, Work, dtype_of
from m5ds.kernels.benchmarks.roofline import both
from m5ds.kernels.common import philox
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities import EmbedInput, MaskSpec, draw_mask, embed_modalities, replace_tokens

LENGTHS = {"quickstart": (16, 24, 24, 8, 12), "paper": (36, 36, 64, 12, 80), "raw": (196, 36, 64, 294, 230)}
WIDTHS = {"quickstart": 128, "paper": 768, "raw": 768}
VOCABULARIES = {"quickstart": 600, "paper": 21128, "raw": 21128}
CPU_PRODUCTS = {"quickstart": 48, "paper": 16, "raw": 16}
"""Content rows of image, text, table, video, audio; image, video and audio have [CLS] rows besides."""
_DISCRETE = (False, True, True, False, False)
_EPS, _SEED = 1e-5, 0


def cases(device: torch.device, grid: str) -> Iterator[Case]:
    """Lengths x presence; on a CPU fewer products, and raw lengths whole only in the full grid."""
    on_gpu = device.type == "cuda"
    for lengths in {"quick": ("paper",), "short": ("paper", "raw")}.get(grid, LENGTHS):
        for presence in (0.75,) if grid in ("quick", "short") else (0.3, 0.5, 0.75, 1.0):
            if grid != "default" or lengths != "raw" or presence == 0.75:
                yield _case(device, lengths, presence, 256 if on_gpu else CPU_PRODUCTS[lengths])


def _case(device: torch.device, lengths: str, presence: float, num_products: int) -> Case:
    width = WIDTHS[lengths]
    dtype = dtype_of(device)
    inputs, layout = _problem(lengths, presence, num_products, device, dtype)
    leaves = [value for item in inputs for value in item.floats().values()]
    grad_TD = torch.randn(layout.num_rows, width, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    def filled(values: tuple[Tensor, ...]) -> list[EmbedInput]:
        left = iter(values)
        return [dataclasses.replace(item, **{name: next(left) for name in item.floats()}) for item in inputs]

    def fused(*values: Tensor) -> Tensor:
        return embed_modalities(filled(values), layout, seed=_SEED, eps=_EPS)[0]

    def unfused(*values: Tensor) -> Tensor:
        slabs = [_chain(item, number, layout) for number, item in enumerate(filled(values))]
        return torch.cat(slabs)

    name = "fused (triton)" if device.type == "cuda" else "fused (torch path)"
    return Case(
        "embed_modalities",
        {"lengths": lengths, "presence": presence, "products": num_products, "width": width, "dtype": str(dtype)},
        [Provider(name, fused, tuple(leaves), grad_TD), Provider("unfused torch", unfused, tuple(leaves), grad_TD)],
        tolerance=2e-2 if dtype != torch.float32 else 1e-5,
        estimates=_estimates(inputs, layout, width),
        work=_work(inputs, layout, width * dtype.itemsize),
    )


def _problem(
    name: str, presence: float, num_products: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[EmbedInput], PackedLayout]:
    lengths, width, vocabulary = LENGTHS[name], WIDTHS[name], VOCABULARIES[name]
    generator = torch.Generator().manual_seed(0)

    def parameter(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    present_BM = torch.rand(num_products, 5, generator=generator) < presence
    content_BM = present_BM * torch.tensor(lengths)
    has_cls = torch.tensor([not discrete for discrete in _DISCRETE])
    products = torch.arange(num_products) * 7919
    layout = PackedLayout.build(content_BM + present_BM * has_cls, present_BM, products, torch.zeros_like(products))
    inputs = []
    for m, discrete in enumerate(_DISCRETE):
        row_N = torch.cat([torch.arange(n) for n in content_BM[:, m].tolist()]).to(device)
        token_N = torch.randint(5, vocabulary, row_N.shape, generator=generator).to(device)
        text = {"text": True, "vocab_size": vocabulary, "first_random_token": 5} if m == 1 else {}
        inputs.append(
            EmbedInput(
                modality=m,
                position_N=row_N,
                unit_N=row_N,
                part_N=row_N % 2 if m == 2 else torch.zeros_like(row_N),
                position_table_PD=parameter(lengths[m], width),
                modality_D=parameter(width),
                norm_weight_D=parameter(width),
                norm_bias_D=parameter(width),
                projected_ND=None if discrete else parameter(len(row_N), width),
                token_N=token_N if discrete else None,
                token_table_VD=parameter(vocabulary, width) if discrete else None,
                part_table_2D=parameter(2, width) if m == 2 else None,
                mask_D=None if discrete else parameter(width),
                cls_D=None if discrete else parameter(width),
                mask=MaskSpec(threshold=philox.threshold(0.15), mask_token=4, **text),
            )
        )
    return inputs, layout.to(device)


def _chain(item: EmbedInput, number: int, layout: PackedLayout) -> Tensor:
    """One modality's slab, an op a step."""
    slab = slice(layout.slab[number], layout.slab[number + 1])
    product_R, position_R = layout.row_product_T[slab], layout.row_position_T[slab]
    is_content_R = position_R >= int(item.cls_D is not None)
    product_N = product_R[is_content_R]
    keys = (layout.product_B[product_N], layout.draw_B[product_N])
    masked_N = draw_mask(item.unit_N, item.part_N, *keys, item.modality, _SEED, item.mask)
    if item.token_N is None:
        x_ND = torch.where(masked_N[:, None], item.mask_D, item.projected_ND)
    else:
        seen_N = replace_tokens(item.token_N, masked_N, item.unit_N, *keys, item.modality, _SEED, item.mask)
        x_ND = embedding(seen_N, item.token_table_VD)
    x_ND = x_ND + embedding(item.position_N, item.position_table_PD)
    if item.part_table_2D is not None:
        x_ND = x_ND + embedding(item.part_N, item.part_table_2D)
    x_RD = x_ND
    if item.cls_D is not None:
        x_RD = x_ND.new_empty(len(product_R), x_ND.shape[1])
        x_RD = x_RD.index_put((is_content_R.nonzero()[:, 0],), x_ND)
        x_RD = torch.where(is_content_R[:, None], x_RD, item.cls_D)
    return layer_norm(x_RD + item.modality_D, x_RD.shape[1:], item.norm_weight_D, item.norm_bias_D, _EPS)


def _work(inputs: list[EmbedInput], layout: PackedLayout, row: int) -> dict[str, Work]:
    """`row` bytes a row. Forward: content in, rows out. Backward: both and the gradients of all leaves besides."""
    content = sum(item.num_rows for item in inputs) * row
    rows = layout.num_rows * row
    gradients = sum(x.numel() * x.element_size() for item in inputs for x in item.floats().values())
    return both(Work(content + rows, 0), Work(content + rows + gradients, 0))


def _estimates(inputs: list[EmbedInput], layout: PackedLayout, width: int) -> list[Estimate]:
    """bf16. At least: each row in and out once; and with every position row read from memory, not from a cache."""
    row, content = 2 * width, sum(item.num_rows for item in inputs)
    statistics = 8 * layout.num_rows
    forward = (content + layout.num_rows) * row + statistics
    backward = (2 * content + layout.num_rows) * row + statistics
    position = content * row
    tables = sum(t.numel() * 2 for item in inputs for t in (item.token_table_VD,) if t is not None)
    return [
        Estimate("fwd", forward + position, forward, 0),
        Estimate("bwd", backward + 3 * position + tables, backward + position + tables, 0),
    ]
