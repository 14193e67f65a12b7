"""What the embedding kernels move, counted in the interpreter: bytes, and who writes what how often.

DRAM bytes of a launch: what it stores, plus of each argument it loads the smaller of the bytes loaded and its own
size. Vectors, position tables and index arrays are read again from cache: they are far smaller than a GPU's L2.
"""

import dataclasses

import numpy as np
import torch
from embed_cases import all_patterns, case, gradients
from torch.nn.functional import embedding, layer_norm
from torch.utils._python_dispatch import TorchDispatchMode

from m5ds.kernels.embed_modalities import EmbedInput, embed_modalities
from m5ds.kernels.verify.traffic import count_traffic

_WIDTH, _ROWS, _PRODUCTS = 768, 15, 8


class _RowTraffic(TorchDispatchMode):
    """Bytes of row-sized tensors that every torch op reads and writes, as if each op were one perfect kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs, out))
        if "view" not in str(function) and "unsqueeze" not in str(function):
            rows = [v for v in flat if isinstance(v, torch.Tensor) and v.numel() >= _PRODUCTS * (_ROWS - 1) * _WIDTH]
            self.total += sum(v.numel() * v.element_size() for v in rows)
        return out


def _image_only() -> tuple[list[EmbedInput], object]:
    """Only image rows: projection, mask, position, modality, LayerNorm, packed behind one [CLS] row a product."""
    present_BM = torch.zeros(_PRODUCTS, 5, dtype=torch.bool)
    present_BM[:, 0] = True
    inputs, layout = case(present_BM, lengths=(_ROWS, 1, 1, 1, 1), width=_WIDTH, dtype=torch.float16, ratio=0.15)
    return [dataclasses.replace(inputs[0], extra_ND=None), *inputs[1:]], layout


def _unfused(item: EmbedInput, masked_N: torch.Tensor) -> int:
    """Row bytes of the textbook chain: replace, look up, add, add, normalise, put behind [CLS] rows."""
    with torch.no_grad(), _RowTraffic() as traffic:
        x_ND = torch.where(masked_N[:, None], item.mask_D, item.projected_ND)
        x_ND = x_ND + embedding(item.position_N, item.position_table_PD)
        x_ND = layer_norm(x_ND + item.modality_D, (_WIDTH,), item.norm_weight_D, item.norm_bias_D)
        x_TD = torch.empty(len(x_ND) + _PRODUCTS, _WIDTH, dtype=x_ND.dtype)
        x_TD[_PRODUCTS:] = x_ND
    return traffic.total


def test_embedding_moves_each_row_in_and_out_once() -> None:
    """At most 1.1 x one read and one write per row, at least 4 x less than the unfused chain; masked rows unread."""
    inputs, layout = _image_only()
    with torch.no_grad(), count_traffic() as traffic:
        x_TD, masks = embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")
    launch = traffic.of("embed_fwd_kernel")
    item = inputs[0]
    sizes = {
        "p_base": item.projected_ND,
        "p_position_table": item.position_table_PD,
        "p_modality": item.modality_D,
        "p_mask": item.mask_D,
        "p_cls": item.cls_D,
        "p_norm_weight": item.norm_weight_D,
        "p_norm_bias": item.norm_bias_D,
    }
    moved = launch.total_stored
    for name, loaded in launch.loaded.items():
        moved += min(loaded, sizes[name].numel() * 2) if name in sizes else loaded
    minimum = 2 * x_TD.numel() * x_TD.element_size()
    assert moved <= 1.1 * minimum
    assert launch.loaded["p_base"] == int((~masks[0]).sum()) * _WIDTH * 2
    assert _unfused(item, masks[0]) >= 4 * moved


def test_every_embedding_output_is_written_once() -> None:
    """By all launches of a kernel together, since each modality's launch writes its slab; tables at most once."""
    inputs, layout = case(all_patterns()[[31, 0, 13, 22]], lengths=(5, 4, 6, 3, 2), dtype=torch.float32)
    with count_traffic() as traffic:
        gradients(embed_modalities(inputs, layout, seed=0, eps=1e-5, path="triton")[0], inputs)
    together: dict[str, np.ndarray] = {}
    for launch in traffic.launches:
        if launch.kernel == "embed_fwd_kernel":
            for name in ("p_x", "p_mean", "p_rstd", "p_masked"):
                together[name] = together.get(name, 0) + launch.writes[name]
        elif launch.kernel == "embed_bwd_rows_kernel":
            assert launch.written_once()
        else:
            assert launch.writes["p_grad_table"].max() == 1
    assert all((counts == 1).all() for counts in together.values())
    assert together.keys() == {"p_x", "p_mean", "p_rstd", "p_masked"}
