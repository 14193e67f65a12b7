"""Model FLOPs of a micro-batch and the peak of the device, for the utilisation that the monitor reports.

Counted are the blocks' matrix products on the rows that are really there (packed, so nothing for absent modalities):
projections, attention over visible segments, feed-forward; backward is twice forward, recomputation is not counted.
Embedders and heads are left out, which understates small models.
"""

import torch

from m5ds.batch import Batch
from m5ds.config import ModelConfig
from m5ds.model import fusion

_PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A40", 150e12),
    ("A10", 125e12),
    ("V100", 125e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307e12),
    ("MI250X", 191.5e12),
)
"""Dense bf16 (V100: fp16) tensor FLOP/s by a part of the device's name, from the vendors' data sheets; first match."""


def device_peak(device: torch.device) -> float | None:
    """FLOP/s of the device, None where the table does not know it (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS if part in name), None)


class FlopCounter:
    """FLOPs of forward and backward for micro-batches of one model."""

    def __init__(self, spec: ModelConfig) -> None:
        self._names = spec.modality_names
        self._width = spec.hidden_size
        self._extra_rows = [int(spec.modalities[name].cls == "learned") for name in self._names]
        self._layers = fusion.layers(spec)

    def count(self, batch: Batch) -> float:
        width, total = self._width, 0.0
        lengths = []
        for name, extra in zip(self._names, self._extra_rows, strict=True):
            length_B = batch.modalities[name].length_B
            lengths.append((length_B + extra * (length_B > 0)).double())
        rows = [float(length_B.sum()) for length_B in lengths]
        for layer in self._layers:
            for i, updated in enumerate(layer.updates):
                total += rows[i] * 6 * width**2 * layer.attends[i]
                if not updated:
                    continue
                total += rows[i] * (2 * width**2 + 4 * width * layer.ffn_dim)
                for j, sees in enumerate(layer.visibility[i]):
                    if sees:
                        total += 4 * width * float(lengths[i] @ lengths[j])
        return 3 * total
