"""Inputs of embed_modalities for the tests: five modalities, every kind of row, any presence."""

import torch

from m5ds.kernels.common import philox
from m5ds.kernels.common.layout import PackedLayout
from m5ds.kernels.embed_modalities import EmbedInput, MaskSpec

KINDS = ("image", "text", "table", "video", "audio")


def all_patterns() -> torch.Tensor:
    """bool [32, 5]: every presence pattern once, the empty one first."""
    return torch.tensor([[bool(number >> m & 1) for m in range(5)] for number in range(32)])


def case(
    present_BM: torch.Tensor,
    lengths: tuple[int, ...] = (7, 6, 8, 4, 3),
    width: int = 16,
    dtype: torch.dtype = torch.float64,
    ratio: float = 0.4,
    seed: int = 0,
    vocabulary: int = 23,
) -> tuple[list[EmbedInput], PackedLayout]:
    """Image: [CLS], box geometry; text: 80/10/10; table: parts, key_or_value; video: [CLS], frames of two rows; audio:
    unmasked, with a mask vector that nothing uses. Product b has lengths[m] - b % 2 content rows (at least one).
    """
    generator = torch.Generator().manual_seed(seed)
    num_products = present_BM.shape[0]

    def parameter(*shape: int, scale: float = 0.5, shift: float = 0.0) -> torch.Tensor:
        value = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift
        return value.to(dtype).requires_grad_()

    content_BM = torch.tensor([[max(1, lengths[m] - b % 2) for m in range(5)] for b in range(num_products)])
    content_BM = content_BM.view(num_products, 5) * present_BM
    has_cls = torch.tensor([True, False, False, True, False])
    layout = PackedLayout.build(
        content_BM + (present_BM & has_cls),
        present_BM,
        torch.tensor([philox.product_hash(f"product {b}") for b in range(num_products)], dtype=torch.int64),
        torch.arange(num_products) % 3,
    )
    inputs = []
    for m, kind in enumerate(KINDS):
        row_N = torch.cat([torch.arange(n) for n in content_BM[:, m].tolist()] or [torch.zeros(0)]).long()
        num_rows = len(row_N)
        discrete = kind in ("text", "table")
        unit_N = row_N // 2 if kind in ("table", "video") else row_N.clone()
        if kind == "text":
            unit_N[row_N == 0] = -1
        token_N = torch.randint(2, vocabulary, (num_rows,), generator=generator)
        spec = {
            "image": MaskSpec(threshold=philox.threshold(ratio)),
            "text": MaskSpec(
                threshold=philox.threshold(ratio),
                text=True,
                mask_token=1,
                vocab_size=vocabulary,
                first_random_token=2,
            ),
            "table": MaskSpec(threshold=philox.threshold(ratio), unit="key_or_value", mask_token=1),
            "video": MaskSpec(threshold=philox.threshold(ratio)),
            "audio": None,
        }[kind]
        inputs.append(
            EmbedInput(
                modality=m,
                position_N=row_N,
                unit_N=unit_N,
                part_N=row_N % 2 if kind == "table" else torch.zeros_like(row_N),
                position_table_PD=parameter(max(lengths) + 1, width),
                modality_D=parameter(width),
                norm_weight_D=parameter(width, shift=1.0),
                norm_bias_D=parameter(width),
                projected_ND=None if discrete else parameter(num_rows, width, scale=1.0),
                token_N=token_N if discrete else None,
                token_table_VD=parameter(vocabulary, width, scale=1.0) if discrete else None,
                part_table_2D=parameter(2, width) if kind == "table" else None,
                extra_ND=parameter(num_rows, width) if kind == "image" else None,
                mask_D=None if discrete else parameter(width),
                cls_D=parameter(width) if bool(has_cls[m]) else None,
                mask=spec,
            )
        )
    return inputs, layout


def named(inputs: list[EmbedInput]) -> dict[str, torch.Tensor]:
    """Every differentiable tensor by modality and field."""
    return {f"{KINDS[m]}.{name}": value for m, item in enumerate(inputs) for name, value in item.floats().items()}


def gradients(x_TD: torch.Tensor, inputs: list[EmbedInput]) -> dict[str, torch.Tensor | None]:
    """The gradient of a fixed random functional of x to every tensor, by name."""
    generator = torch.Generator().manual_seed(9)
    weight_TD = torch.randn(x_TD.shape, generator=generator, dtype=torch.float64).to(x_TD.dtype)
    tensors = named(inputs)
    grads = torch.autograd.grad((x_TD * weight_TD).sum(), list(tensors.values()), allow_unused=True)
    return dict(zip(tensors, grads, strict=True))
