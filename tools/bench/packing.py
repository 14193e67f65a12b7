"""What packing saves on this CPU: two whole fusion blocks on packed rows against the same blocks on padded ones.

    python tools/bench/packing.py [--width 768] [--products 4] [--repeats 5] [--lengths paper,raw] [--presence 75,50,30]
                                  [--out FILE.csv]

Same weights; outputs and input gradients of the rows that exist are compared first. Padded is what a model without
packing does: every product has all slots, a boolean mask hides the absent ones. Prints CPU seconds of forward and
backward (median, one thread) and the speed-up next to the token ratio; `--out` appends the same rows to a CSV, which
`kernels/benchmarks/run.py --tables` makes into a table. Exits 1 where the speed-up is under 0.9 of the token ratio.
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from m5ds.cli import run_tool
from m5ds.config import BlockConfig
from m5ds.inputs import AudioPatches, ImagePatches, RegionFeatures, TablePairs, TextTokens, VideoTubes
from m5ds.kernels.benchmarks.results import append_csv, device_name
from m5ds.kernels.benchmarks.timing import keep_freed_memory
from m5ds.kernels.common.layout import PackedLayout
from m5ds.model.blocks import PackedBlock
from m5ds.model.fusion import LayerSpec, visibility_matrix

NAMES = ("image", "text", "table", "video", "audio")
_WORDS = (TextTokens().max_rows, TablePairs().max_rows)
LENGTHS = {
    # the paper's 231 rows: features with one global row per modality, 36 caption tokens, 64 table tokens
    "paper": (RegionFeatures().max_rows + 1, 36, 64, 13, 81),
    "raw": (
        ImagePatches().max_rows + 1,
        _WORDS[0],
        _WORDS[1] + 1,
        VideoTubes().max_rows + 1,
        AudioPatches().max_rows + 1,
    ),
}
WORST_SHARE_OF_TOKEN_RATIO = 0.9
Row = dict[str, str | int | float]


def make_layout(lengths: tuple[int, ...], presence: float, num_products: int, seed: int) -> PackedLayout:
    """Exactly `presence` of all (product, modality) slots filled, at random places."""
    slots = num_products * len(lengths)
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(seed))
    present_BM = (order < round(presence * slots)).view(num_products, len(lengths))
    products = torch.arange(num_products)
    return PackedLayout.build(present_BM * torch.tensor(lengths), present_BM, products, torch.zeros_like(products))


def make_blocks(width: int, head_dim: int = 64) -> torch.nn.ModuleList:
    """Two fusion blocks as in SCALE: every row sees every row, weights shared over modalities."""
    everything = (True,) * len(NAMES)
    defaults = BlockConfig()
    spec = LayerSpec(
        name="fusion",
        index=0,
        visibility=visibility_matrix("all", NAMES),
        updates=everything,
        causal=(False,) * len(NAMES),
        shared_attention=True,
        shared_ffn=True,
        pre_norm=defaults.norm == "pre",
        activation=defaults.activation,
        num_heads=width // head_dim,
        ffn_dim=4 * width,
    )
    options = {"eps": 1e-5, "dropout": 0.0, "attention_dropout": 0.0}
    return torch.nn.ModuleList(PackedBlock(spec, NAMES, width, **options) for _ in range(2))


def packed_forward(blocks: torch.nn.ModuleList, x_TD: Tensor, layout: PackedLayout) -> Tensor:
    for block in blocks:
        x_TD = block(x_TD, layout, 0)
    return x_TD


def padded_forward(blocks: torch.nn.ModuleList, x_BLD: Tensor, exists_BL: Tensor) -> Tensor:
    """The same layers on [B, L, D], absent rows computed and hidden from attention."""
    B, L, D = x_BLD.shape
    # a product without any row would be a softmax over nothing: let it see its own padding
    mask = (exists_BL | ~exists_BL.any(1, keepdim=True))[:, None, None, :]
    for block in blocks:
        qkv = block.attention["shared"](x_BLD).view(B, L, 3, block.spec.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2).reshape(B, L, D)
        x_BLD = block.output["shared"](x_BLD, attended, lambda x: x)
        x_BLD = block.ffn["shared"](x_BLD, lambda x: x)
    return x_BLD


def slots_of(layout: PackedLayout, lengths: tuple[int, ...]) -> Tensor:
    """int64 [T]: the place of each packed row in the flattened padded buffer."""
    base_M = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    column_T = base_M[layout.row_modality_T] + layout.row_position_T
    return layout.row_product_T * sum(lengths) + column_T


def cpu_seconds(step: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median CPU seconds of both, taken in turn so that a busy machine hurts both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, taken in zip((step, other), times, strict=True):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, presence: float, width: int, num_products: int, repeats: int) -> Row:
    """One row of the table. `SystemExit` where packed and padded rows disagree."""
    lengths = LENGTHS[name]
    layout = make_layout(lengths, presence, num_products, seed=0)
    torch.manual_seed(0)
    blocks = make_blocks(width)
    x_TD = torch.randn(layout.num_rows, width, requires_grad=True)
    slot_T = slots_of(layout, lengths)
    shape = (num_products, sum(lengths))
    exists_BL = torch.zeros(shape, dtype=torch.bool).view(-1).index_fill(0, slot_T, True).view(shape)
    x_BLD = torch.zeros(shape[0] * shape[1], width).index_copy(0, slot_T, x_TD.detach()).view(*shape, width)
    x_BLD.requires_grad_()
    grad_TD = torch.randn_like(x_TD)
    grad_BLD = torch.zeros_like(x_BLD).view(-1, width).index_copy(0, slot_T, grad_TD).view_as(x_BLD).detach()

    def packed() -> tuple[Tensor, Tensor]:
        out = packed_forward(blocks, x_TD, layout)
        blocks.zero_grad()
        x_TD.grad = None
        out.backward(grad_TD)
        return out.detach(), x_TD.grad

    def padded() -> tuple[Tensor, Tensor]:
        out = padded_forward(blocks, x_BLD, exists_BL)
        blocks.zero_grad()
        x_BLD.grad = None
        out.backward(grad_BLD)
        return tuple(x.reshape(-1, width)[slot_T] for x in (out.detach(), x_BLD.grad))

    for what, a, b in zip(("output", "gradient"), packed(), padded(), strict=True):
        error = float((a - b).norm() / b.norm())
        if error > 1e-5:
            raise SystemExit(
                f"packed and padded {what} differ by {error:.1e} at {name} lengths, presence {presence:.0%}"
            )
    packed_s, padded_s = cpu_seconds(packed, padded, repeats)
    ratio = exists_BL.numel() / max(layout.num_rows, 1)
    return {
        "lengths": name,
        "presence": f"{presence:.0%}",
        "packed_rows": layout.num_rows,
        "padded_rows": exists_BL.numel(),
        "packed_s": f"{packed_s:.3f}",
        "padded_s": f"{padded_s:.3f}",
        "speed_up": f"{padded_s / packed_s:.2f}",
        "token_ratio": f"{ratio:.2f}",
        "share": f"{padded_s / packed_s / ratio:.2f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768, help="hidden width, a multiple of 64 (default: %(default)s)")
    parser.add_argument("--products", type=int, default=4, help="products in the batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--lengths", default="paper,raw", help="of: paper, raw (default: %(default)s)")
    parser.add_argument("--presence", default="75,50,30", help="per cent of slots filled (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="append the rows to this CSV too")
    options = parser.parse_args()
    if options.width % 64:
        raise ValueError(f"--width must be a multiple of 64, got {options.width}")
    if unknown := [name for name in options.lengths.split(",") if name not in LENGTHS]:
        raise ValueError(f"--lengths: unknown {', '.join(unknown)}; known: {', '.join(LENGTHS)}")
    torch.set_num_threads(1)
    keep_freed_memory()
    run = {
        "width": options.width,
        "products": options.products,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": device_name(torch.device("cpu")),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    earned = []
    for name in options.lengths.split(","):
        for percent in options.presence.split(","):
            row = compare(name, float(percent) / 100, options.width, options.products, options.repeats)
            if not earned:
                print(" ".join(f"{column:>11}" for column in row))
            print(" ".join(f"{value:>11}" for value in row.values()), flush=True)
            if options.out:
                append_csv(options.out, row | run)
            earned.append(float(row["share"]) >= WORST_SHARE_OF_TOKEN_RATIO)
    return 0 if all(earned) else 1


if __name__ == "__main__":
    run_tool(main)
