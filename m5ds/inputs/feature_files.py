"""Arrays of precomputed features out of `.npy` and `.npz` files that may hold anything."""

import io
import math
import zipfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from m5ds.inputs.media import MediaError

MAX_FEATURE_BYTES = 256 * 2**20
"""Largest array that a feature file may unpack to."""


def finite(array: np.ndarray, what: str) -> Tensor:
    """float32 tensor of a numeric array; MediaError for anything not finite in float32."""
    if array.dtype.kind not in "fiu":
        raise MediaError(f"{what} holds {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        tensor = torch.from_numpy(array.astype(np.float32))
    if not torch.isfinite(tensor).all():
        raise MediaError(f"{what} holds NaN or infinite values")
    return tensor


def read_npy(data: bytes, what: str) -> np.ndarray:
    """The array of an `.npy` file. The header is checked first: `np.load` would allocate whatever it claims."""
    stream = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # the header is a Python literal: SyntaxError, TokenError and others
        raise MediaError(f"{what} is no .npy file") from error
    count, start = math.prod(shape), stream.tell()
    if dtype.hasobject or any(side < 0 for side in shape) or len(data) - start < count * dtype.itemsize:
        raise MediaError(f"{what} is cut short: {shape} of {dtype} in {len(data)} bytes")
    array = np.frombuffer(data, dtype, count, start)
    return array.reshape(shape, order="F" if fortran_order else "C")


def read_npz(data: bytes, names: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file, each at most MAX_FEATURE_BYTES when unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {}
            for name in names:
                info = archive.getinfo(f"{name}.npy")
                if info.file_size > MAX_FEATURE_BYTES:
                    raise MediaError(f"{what}: {name} unpacks to {info.file_size} bytes")
                arrays[name] = read_npy(archive.read(info), f"{what}: {name}")
            return arrays
    except KeyError as error:
        raise MediaError(f"{what} lacks one of {', '.join(names)}") from error
    except MediaError:
        raise
    except Exception as error:  # zipfile and zlib raise half a dozen types on damaged archives
        raise MediaError(f"{what} is no .npz archive: {error}") from error
