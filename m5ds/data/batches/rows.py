"""From decoded media, token ids and feature files to the rows that the model embeds. Pure functions, no randomness.

Every maker returns one `ProductRows` a product; `assemble` packs a micro-batch's products into `ModalityRows`.

Shape letters: K products, N rows, F features a row, T frames, H x W pixels, R regions, D feature width.
"""

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m5ds.batch import ModalityRows
from m5ds.inputs import AudioPatches, FeatureRows, ImagePatches, InputSpec, RegionFeatures, VideoTubes

MAX_FEATURE_BYTES = 256 * 2**20
"""Largest array that a feature file may unpack to."""


class FeatureFileError(ValueError):
    """A precomputed feature file that is damaged or of the wrong shape; the loader records it as bad media."""


@dataclass(kw_only=True, slots=True)
class ProductRows:
    """One product's rows of one modality; the fields mean what they mean in `ModalityRows`."""

    position_N: Tensor
    unit_N: Tensor
    part_N: Tensor
    values_NF: Tensor | None = None
    token_N: Tensor | None = None
    geometry_N5: Tensor | None = None


def _numbered(values_NF: Tensor, geometry_N5: Tensor | None = None) -> ProductRows:
    """Rows where position and masking unit are both the row's number."""
    number_N = torch.arange(values_NF.shape[0])
    return ProductRows(
        position_N=number_N,
        unit_N=number_N,
        part_N=torch.zeros_like(number_N),
        values_NF=values_NF,
        geometry_N5=geometry_N5,
    )


def image_rows(values_K3HW: Tensor, spec: ImagePatches) -> list[ProductRows]:
    """Square patches in row-major order, features in (channel, y, x) order. Position and unit: the patch's number."""
    num, size, patch = values_K3HW.shape[0], spec.size // spec.patch, spec.patch
    assert values_K3HW.shape[1:] == (3, spec.size, spec.size), f"{tuple(values_K3HW.shape)} for image size {spec.size}"
    grid = values_K3HW.reshape(num, 3, size, patch, size, patch).permute(0, 2, 4, 1, 3, 5)
    return [_numbered(rows_NF) for rows_NF in grid.reshape(num, spec.max_rows, spec.dim)]


def video_rows(values_KT3HW: Tensor, spec: VideoTubes) -> list[ProductRows]:
    """Tubes in (time, y, x) order, features in (frame, channel, y, x). Position and unit: the tube's number."""
    num, size, patch = values_KT3HW.shape[0], spec.size // spec.patch, spec.patch
    expected = (spec.frames, 3, spec.size, spec.size)
    assert values_KT3HW.shape[1:] == expected, f"{tuple(values_KT3HW.shape)} for clips of {expected}"
    steps, frames = spec.frames // spec.tube_frames, spec.tube_frames
    grid = values_KT3HW.reshape(num, steps, frames, 3, size, patch, size, patch).permute(0, 1, 4, 6, 2, 3, 5, 7)
    return [_numbered(rows_NF) for rows_NF in grid.reshape(num, spec.max_rows, spec.dim)]


def audio_rows(mels: Sequence[Tensor], spec: AudioPatches) -> list[ProductRows]:
    """Patches in (time, frequency) order; a row's features are (mel bin, step). Position and unit: the patch's number.

    `mels`: one [num_mels, steps] tensor a product, `steps` a multiple of `spec.patch_steps`.
    """
    products = []
    for mel in mels:
        num_mels, steps = mel.shape
        assert num_mels == spec.num_mels and steps % spec.patch_steps == 0, f"{tuple(mel.shape)} for {spec}"
        grid = mel.reshape(num_mels // spec.patch_mels, spec.patch_mels, steps // spec.patch_steps, spec.patch_steps)
        products.append(_numbered(grid.permute(2, 0, 1, 3).reshape(-1, spec.dim)))
    return products


def time_step(position_N: Tensor, spec: InputSpec) -> Tensor:
    """int64 [N]: the time step (tube layer, column of audio patches, feature row) that each row belongs to.

    Rows of one step are what a `frame` masking unit masks together. ValueError for specs without time.
    """
    if isinstance(spec, VideoTubes):
        return position_N // (spec.size // spec.patch) ** 2
    if isinstance(spec, AudioPatches):
        return position_N // (spec.num_mels // spec.patch_mels)
    if isinstance(spec, FeatureRows):
        return position_N
    raise ValueError(f"input {spec.kind} has no time steps; masking unit `frame` needs video, audio or feature rows")


def text_rows(tokens: Sequence[int], max_tokens: int, *, cls_id: int, sep_id: int) -> ProductRows:
    """[CLS], tokens, [SEP], at most `max_tokens` in all; tokens are cut, never [SEP]. Special tokens have unit -1."""
    kept = [cls_id, *tokens[: max(max_tokens - 2, 0)], sep_id][:max_tokens]
    number_N = torch.arange(len(kept))
    unit_N = number_N.clone()
    unit_N[0] = unit_N[-1] = -1
    return ProductRows(
        position_N=number_N,
        unit_N=unit_N,
        part_N=torch.zeros_like(number_N),
        token_N=torch.tensor(kept, dtype=torch.int64),
    )


def table_rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_tokens: int,
    max_tokens_per_pair: int,
    order: Sequence[int] | None = None,
) -> ProductRows | None:
    """Key tokens then value tokens, pair after pair in `order` (default: as given).

    A pair longer than `max_tokens_per_pair`, or than what is left of `max_tokens`, is left out whole; a later, shorter
    one may still fit. Unit: the pair's index in `pairs`, so that it keeps its random draws in any order. Part: 0 key,
    1 value. None where no pair fits.
    """
    token_N: list[int] = []
    unit_N: list[int] = []
    part_N: list[int] = []
    for index in range(len(pairs)) if order is None else order:
        key, value = pairs[index]
        length = len(key) + len(value)
        if length > max_tokens_per_pair or len(token_N) + length > max_tokens:
            continue
        token_N += [*key, *value]
        unit_N += [index] * length
        part_N += [0] * len(key) + [1] * len(value)
    if not token_N:
        return None
    return ProductRows(
        position_N=torch.arange(len(token_N)),
        unit_N=torch.tensor(unit_N),
        part_N=torch.tensor(part_N),
        token_N=torch.tensor(token_N, dtype=torch.int64),
    )


def feature_rows(data: bytes, spec: FeatureRows) -> ProductRows:
    """Rows of an `.npy` file [rows, dim] of finite numbers; rows past `spec.rows` are cut.

    Raises FeatureFileError where the file is no such array.
    """
    features = _npy(data, "feature file")
    if features.ndim != 2 or features.shape[1] != spec.dim or not len(features):
        raise FeatureFileError(f"feature file has shape {features.shape}, expected (rows, {spec.dim})")
    return _numbered(_finite(features[: spec.rows], "feature file"))


def region_rows(data: bytes, spec: RegionFeatures) -> ProductRows:
    """Rows of an `.npz` file: `features` [R, dim], `boxes` [R, 4] (x1, y1, x2, y2 in pixels), `size` (height, width).

    Regions past `spec.max_regions` are cut (detectors write the most confident first). Geometry: x1, y1, x2, y2 and the
    area, as fractions of the picture. Raises FeatureFileError where the file is no such archive.
    """
    arrays = _npz(data, ("features", "boxes", "size"))
    features, boxes, size = arrays["features"], arrays["boxes"], arrays["size"]
    if features.ndim != 2 or features.shape[1] != spec.dim or not len(features):
        raise FeatureFileError(f"region file: features have shape {features.shape}, expected (regions, {spec.dim})")
    if boxes.shape != (len(features), 4) or size.shape != (2,):
        raise FeatureFileError(
            f"region file: boxes {boxes.shape} and size {size.shape}, expected ({len(features)}, 4) and (2,)"
        )
    box_R4 = _finite(boxes[: spec.max_regions], "region file: boxes")
    height, width = (float(side) for side in size)
    if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
        raise FeatureFileError(f"region file: size ({height}, {width}) must be positive (height, width)")
    corners_R4 = box_R4 / torch.tensor([width, height, width, height])
    area_R = (corners_R4[:, 2] - corners_R4[:, 0]) * (corners_R4[:, 3] - corners_R4[:, 1])
    values_RD = _finite(features[: spec.max_regions], "region file: features")
    return _numbered(values_RD, torch.cat([corners_R4, area_R[:, None]], dim=1))


def assemble(products: Sequence[ProductRows | None], spec: InputSpec) -> ModalityRows:
    """The products' rows one after another; None is an absent product. Lengths stay on the CPU."""
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
    if spec.dim is None:
        rows.token_N = joined(lambda product: product.token_N, none_N)
    else:
        rows.values_NF = joined(lambda product: product.values_NF, torch.empty(0, spec.dim))
    if isinstance(spec, RegionFeatures):
        rows.geometry_N5 = joined(lambda product: product.geometry_N5, torch.empty(0, 5))
    return rows


def _finite(array: np.ndarray, what: str) -> Tensor:
    """float32 tensor of a numeric array; FeatureFileError for anything not finite in float32."""
    if array.dtype.kind not in "fiu":
        raise FeatureFileError(f"{what} holds {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(array.astype(np.float32))
    if not torch.isfinite(tensor).all():
        raise FeatureFileError(f"{what} holds NaN or infinite values")
    return tensor


def _npy(data: bytes, what: str) -> np.ndarray:
    """The array of an `.npy` file. The header is checked first: `np.load` would allocate whatever it claims."""
    stream = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # the header is a Python literal: SyntaxError, TokenError and others
        raise FeatureFileError(f"{what} is no .npy file") from error
    count, start = math.prod(shape), stream.tell()
    if dtype.hasobject or any(side < 0 for side in shape) or len(data) - start < count * dtype.itemsize:
        raise FeatureFileError(f"{what} is cut short: {shape} of {dtype} in {len(data)} bytes")
    array = np.frombuffer(data, dtype, count, start)
    return array.reshape(shape, order="F" if fortran_order else "C")


def _npz(data: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file, each at most MAX_FEATURE_BYTES when unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {}
            for name in names:
                info = archive.getinfo(f"{name}.npy")
                if info.file_size > MAX_FEATURE_BYTES:
                    raise FeatureFileError(f"region file: {name} unpacks to {info.file_size} bytes")
                arrays[name] = _npy(archive.read(info), f"region file: {name}")
            return arrays
    except KeyError as error:
        raise FeatureFileError(f"region file lacks one of {', '.join(names)}") from error
    except FeatureFileError:
        raise
    except Exception as error:  # zipfile and zlib raise half a dozen types on damaged archives
        raise FeatureFileError(f"region file is no .npz archive: {error}") from error
