"""One product's rows of one modality, and a batch's: the products' rows one after another.

Shape letters: N rows, F features a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m5ds.batch import ModalityRows


@dataclass(kw_only=True, slots=True)
class ProductRows:
    """One product's rows of one modality; the fields mean what they mean in `ModalityRows`."""

    position_N: Tensor
    unit_N: Tensor
    part_N: Tensor
    values_NF: Tensor | None = None
    token_N: Tensor | None = None
    geometry_N5: Tensor | None = None


def numbered(values_NF: Tensor, geometry_N5: Tensor | None = None) -> ProductRows:
    """Rows of features where position and masking unit are both the row's number."""
    number_N = torch.arange(values_NF.shape[0])
    return ProductRows(
        position_N=number_N,
        unit_N=number_N,
        part_N=torch.zeros_like(number_N),
        values_NF=values_NF,
        geometry_N5=geometry_N5,
    )


def token_rows(token_N: Tensor) -> ProductRows:
    """Rows of tokens where position and masking unit are both the row's number, each in a tensor of its own."""
    length = token_N.shape[0]
    return ProductRows(
        position_N=torch.arange(length),
        unit_N=torch.arange(length),
        part_N=torch.zeros(length, dtype=torch.int64),
        token_N=token_N,
    )


def assemble(products: Sequence[ProductRows | None], dim: int | None, has_geometry: bool) -> ModalityRows:
    """The products' rows one after another; None is an absent product. Lengths stay on the CPU.

    `dim`: features a row, None for tokens; with `has_geometry` rows carry boxes.
    """
    present = [product for product in products if product is not None]
    length_B = torch.tensor([0 if product is None else len(product.position_N) for product in products])

    def joined(field: Callable[[ProductRows], Tensor | None], empty: Tensor) -> Tensor:
        tensors = [tensor for product in present if (tensor := field(product)) is not None]
        assert len(tensors) == len(present), "products of one modality must set the same fields"
        return torch.cat(tensors) if tensors else empty

    none_N = torch.empty(0, dtype=torch.int64)
    rows = ModalityRows(
        length_B=length_B.to(torch.int64),
        position_N=joined(lambda product: product.position_N, none_N),
        unit_N=joined(lambda product: product.unit_N, none_N),
        part_N=joined(lambda product: product.part_N, none_N),
    )
    if dim is None:
        rows.token_N = joined(lambda product: product.token_N, none_N)
    else:
        rows.values_NF = joined(lambda product: product.values_NF, torch.empty(0, dim))
    if has_geometry:
        rows.geometry_N5 = joined(lambda product: product.geometry_N5, torch.empty(0, 5))
    return rows
