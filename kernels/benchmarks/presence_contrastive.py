"""presence_contrastive against dense InfoNCE: the masked B x B logits of every pair and direction.

Letters: B products (queries and keys alike), M modalities, D width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from m5ds.kernels.benchmarks.case import Case, Estimate, Provider, dtype_of
from m5ds.kernels.benchmarks.roofline import dense_work
from m5ds.kernels.presence_contrastive import presence_contrastive

PAIRS = {
    "chain": tuple((i, i + 1) for i in range(4)),
    "all": tuple((i, j) for i in range(5) for j in range(i + 1, 5)),
}


def cases(device: torch.device, grid: str) -> Iterator[Case]:
    """Batch sizes x pairs x presence. The dense peer's memory is quadratic: 16,384 products only on a GPU."""
    sizes = (1024, 4096, 16384) if device.type == "cuda" else (64, 256, 1024)
    few = grid in ("quick", "short")
    for num_products in sizes[: {"quick": 1, "short": 2}.get(grid)]:
        for pairs in ("chain",) if few else PAIRS:
            for presence in (0.75,) if few else (0.5, 0.75, 1.0):
                if grid != "default" or pairs == "all":
                    yield _case(device, num_products, pairs, presence, 256)


def _case(device: torch.device, num_products: int, pairs: str, presence: float, width: int) -> Case:
    dtype = dtype_of(device)
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(num_products, 5, width, generator=generator), dim=-1).to(device, dtype)
    present_BM = (torch.rand(num_products, 5, generator=generator) < presence).to(device)
    scale = torch.tensor(10.0, device=device)
    positive_B = torch.arange(num_products, device=device)

    def run(path: str | None):
        def function(x_BMD: Tensor, s: Tensor) -> Tensor:
            wide = x_BMD if path is None else x_BMD.float()
            return presence_contrastive(wide, wide, present_BM, present_BM, positive_B, PAIRS[pairs], s, path=path)

        return function

    inputs = (features.requires_grad_(), scale.requires_grad_())
    grad_P2 = torch.full((len(PAIRS[pairs]), 2), 1.0 / num_products, device=device)
    name = "streaming (triton)" if device.type == "cuda" else "streaming (torch path)"
    ours = Provider(name, run(None), inputs, grad_P2)
    logits = sum(2 * n * n * width for n in _has_both(present_BM, PAIRS[pairs]))
    return Case(
        "presence_contrastive",
        {"products": num_products, "pairs": pairs, "presence": presence, "width": width, "dtype": str(dtype)},
        [ours, Provider("dense InfoNCE", run("reference"), inputs, grad_P2)],
        tolerance=2e-2 if dtype != torch.float32 else 1e-4,
        estimates=_estimates(present_BM, PAIRS[pairs], width),
        # One product of logits serves both directions; the backward makes it once more, and one for each side.
        work=dense_work(ours, logits, 3 * logits),
    )


def _has_both(present_BM: Tensor, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    return [int((present_BM[:, i] & present_BM[:, j]).sum()) for i, j in pairs]


def _estimates(present_BM: Tensor, pairs: tuple[tuple[int, int], ...], width: int) -> list[Estimate]:
    """bf16, tiles of 64. At least: features in (and gradients out) once, and the numbers per query."""
    num_products, num_modalities = present_BM.shape
    has_both_P = _has_both(present_BM, pairs)
    flops = sum(2 * 2 * n * n * width for n in has_both_P)
    tensor = num_products * num_modalities * width * 2
    per_query = 2 * len(pairs) * num_products * 4
    streamed = sum(2 * -(-n // 64) * n * width * 2 for n in has_both_P)
    return [
        Estimate("fwd", streamed + tensor + 4 * per_query, 2 * tensor + 4 * per_query, flops),
        Estimate("bwd features", 2 * streamed + 2 * tensor + 6 * per_query, 3 * tensor + 6 * per_query, 2 * flops),
        Estimate("bwd keys", 2 * streamed + 2 * tensor + 4 * per_query, 3 * tensor + 4 * per_query, 2 * flops),
    ]
