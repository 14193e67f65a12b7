"""What the headers of WAV and FLAC sounds claim, so that nothing is allocated on a damaged header's word."""

import struct

from m5ds.data.decode.media import MAX_CHANNELS, MAX_SAMPLE_RATE, MAX_WHOLE_SAMPLES, MIN_SAMPLE_RATE

_PLAIN_WAV = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}
"""Bits a sample of the WAV encodings that DALI gets: PCM, float, A-law, mu-law."""


def whole_samples(data: bytes) -> int | None:
    """Samples times channels of a plain WAV or FLAC sound.

    None for other formats, for headers that contradict themselves and past MAX_WHOLE_SAMPLES: PyAV reads those.
    """
    try:
        claim = _wav(data) or _flac(data)
    except (struct.error, IndexError):
        return None
    if claim is None:
        return None
    length, channels, rate = claim
    plausible = 0 < channels <= MAX_CHANNELS and MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE and length > 0
    return length * channels if plausible and length * channels <= MAX_WHOLE_SAMPLES else None


def _wav(data: bytes) -> tuple[int, int, int] | None:
    """(samples, channels, rate)."""
    if not (data.startswith(b"RIFF") and data[8:12] == b"WAVE"):
        return None
    place, form = 12, None
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind == b"fmt ":
            encoding, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, place + 8)
            if bits not in _PLAIN_WAV.get(encoding, ()) or block != channels * bits // 8 or block == 0:
                return None
            form = (channels, rate, block)
        elif kind == b"data":
            if form is None:
                return None
            channels, rate, block = form
            return min(size, len(data) - place - 8) // block, channels, rate
        place += 8 + size + (size & 1)
    return None


def _flac(data: bytes) -> tuple[int, int, int] | None:
    """(samples, channels, rate) of the stream information block, which comes first."""
    if not data.startswith(b"fLaC") or data[4] & 0x7F != 0:
        return None
    packed = int.from_bytes(data[18:26], "big")
    return packed & 0xFFFFFFFFF, (packed >> 41 & 7) + 1, packed >> 44
