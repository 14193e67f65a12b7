"""Another sample rate for a wave, by the filter of DALI's `audio_resample` at its default quality.

A sinc of 16 lobes on each side under a Hann window, read by linear interpolation from a table of 32 entries a lobe.
Rounding follows DALI's CPU kernel too (float32 positions summed up in blocks of 256 samples, four sums in turn), since
the logarithm of a spectrogram would magnify it: a model gets the same features whether DALI is installed or not
(tests/data/decode/test_plain_runtime.py).

Shape letters: N samples in, R samples out.
"""

import ctypes
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LOBES, _PER_LOBE = 16, 32
_ENTRIES = 2 * _LOBES * _PER_LOBE + 1
_CENTER = np.float32(_ENTRIES // 2 + 1)
"""The table's entry of position 0; one zero comes before the first."""
_BLOCK = 256
_LANES = 4

Floats = NDArray[np.float32]


@lru_cache(maxsize=1)
def _table() -> Floats:
    """The filter from -16 to 16 lobes, with zeros around it."""
    steps = np.arange(_ENTRIES) - _ENTRIES // 2
    angle = (steps / _PER_LOBE * np.pi).astype(np.float32)
    # The C library's float32 sine, which DALI calls: numpy's differs in the last bit of 14 entries.
    sinf = ctypes.CDLL(None).sinf
    sinf.argtypes, sinf.restype = [ctypes.c_float], ctypes.c_float
    sine = np.array([sinf(value) for value in angle.tolist()], np.float32)
    sinc = np.divide(sine, angle, out=np.ones_like(sine), where=angle != 0)
    # The window is one entry wider than the filter: as DALI has it.
    window = 0.5 * (1 + np.cos((steps * np.float32(2 / _ENTRIES)).astype(np.float32).astype(np.float64) * np.pi))
    return np.pad((sinc * window).astype(np.float32), (1, 4))


def resample(wave_N: Floats, rate: float, new_rate: float) -> Floats:
    """float32 [R], R = ceil(N * new_rate / rate): the wave at `new_rate`, silence assumed around it."""
    wave_N = np.asarray(wave_N, np.float32)
    base_R, position_R = _positions(math.ceil(len(wave_N) * new_rate / rate), rate / new_rate)
    center_R = np.ceil(position_R).astype(np.int64)
    first_R = np.maximum(center_R - _LOBES, -base_R)
    taps_R = np.minimum(center_R + _LOBES, len(wave_N) - base_R) - first_R
    whole_R = taps_R - taps_R % _LANES
    lanes = [np.zeros_like(position_R) for _ in range(_LANES)]
    places = [(first_R + lane).astype(np.float32) - position_R for lane in range(_LANES)]
    for tap in range(2 * _LOBES):
        lane = tap % _LANES
        lanes[lane] += np.where(tap < whole_R, _term(wave_N, base_R + first_R + tap, places[lane]), np.float32(0))
        places[lane] = places[lane] + np.float32(_LANES)
    made_R = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
    place_R = (first_R + whole_R).astype(np.float32) - position_R
    for extra in range(_LANES - 1):
        term_R = _term(wave_N, base_R + first_R + whole_R + extra, place_R)
        made_R = made_R + np.where(whole_R + extra < taps_R, term_R, np.float32(0))
        place_R = place_R + np.float32(1)
    return made_R


def _positions(count: int, ratio: float) -> tuple[NDArray[np.int64], Floats]:
    """Where each new sample lies in the wave: a whole sample, and from there on a float32 number of samples."""
    starts = np.arange(0, count, _BLOCK)
    bases = np.floor(starts * ratio)
    steps = np.full((len(starts), _BLOCK), ratio, np.float32)
    steps[:, 0] = starts * ratio - bases
    position_R = np.add.accumulate(steps, axis=1, dtype=np.float32).reshape(-1)[:count]
    return np.repeat(bases.astype(np.int64), _BLOCK)[:count], position_R


def _term(wave_N: Floats, source_R: NDArray[np.int64], place_R: Floats) -> Floats:
    """The named samples under the filter's values at these places."""
    table = _table()
    spot_R = place_R * np.float32(_PER_LOBE) + _CENTER
    entry_R = np.clip(spot_R.astype(np.int64), 0, len(table) - 2)
    weight_R = table[entry_R] + (spot_R - entry_R.astype(np.float32)) * (table[entry_R + 1] - table[entry_R])
    return wave_N[np.clip(source_R, 0, len(wave_N) - 1)] * weight_R
