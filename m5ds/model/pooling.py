"""One vector for a product out of its modalities' summaries.

Shape letters: B products, M modalities, D width of a summary, W width of the product's vector.
"""

import torch
from torch import Tensor

OPERATIONS = ("concat", "mean", "sum")


def pool(states_BMD: Tensor, present_BM: Tensor, operation: str, normalized: bool) -> Tensor:
    """[B, W] fp32 from summaries and presence (bool, same device): W = M * D for `concat`, else D.

    A product without any modality gets the zero vector, normalised or not.
    """
    shown_BMD = states_BMD.float() * present_BM[:, :, None]
    if operation == "concat":
        vector_BW = shown_BMD.flatten(1)
    else:
        vector_BW = shown_BMD.sum(1)
        if operation == "mean":
            vector_BW = vector_BW / present_BM.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(vector_BW, dim=1) if normalized else vector_BW
