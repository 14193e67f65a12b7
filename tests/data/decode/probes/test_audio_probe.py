"""What WAV and FLAC headers claim, and which of them DALI gets."""

import struct

import pytest

from m5ds.data.decode.media import MAX_CHANNELS, MAX_SAMPLE_RATE, MAX_WHOLE_SAMPLES, MIN_SAMPLE_RATE
from m5ds.data.decode.probes.audio import whole_samples


def part(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def wav(
    samples: int = 10,
    *,
    encoding: int = 1,
    bits: int = 16,
    channels: int = 2,
    rate: int = 16000,
    block: int | None = None,
    ahead: bytes = b"",
) -> bytes:
    block = channels * bits // 8 if block is None else block
    form = struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, bits)
    body = part(b"fmt ", form) + ahead + part(b"data", bytes(samples * block))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def test_plain_wav_of_every_encoding_is_counted() -> None:
    plain = {(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64), (6, 8), (7, 8)}
    for encoding in (0, 1, 2, 3, 4, 5, 6, 7, 8, 0x55, 0xFFFE):
        for bits in (4, 7, 8, 9, 12, 15, 16, 17, 20, 23, 24, 25, 31, 32, 33, 48, 63, 64, 65):
            found = whole_samples(wav(encoding=encoding, bits=bits))
            assert found == (20 if (encoding, bits) in plain else None), (encoding, bits)


def test_wav_parts_ahead_of_the_samples_are_passed_over() -> None:
    for length in (0, 1, 2, 3, 26):
        assert whole_samples(wav(ahead=part(b"LIST", b"x" * length))) == 20
    data = wav()
    assert whole_samples(data[:12] + part(b"junk", b"data") + data[12:]) == 20
    assert whole_samples(data[:12] + data[36:]) is None, "samples without a form"
    assert whole_samples(data[:36]) is None and whole_samples(data[:30]) is None and whole_samples(data[:11]) is None
    assert whole_samples(b"RIFX" + data[4:]) is None and whole_samples(data[:8] + b"AVI " + data[12:]) is None


def test_a_wav_holds_what_is_there_and_no_more_than_it_claims() -> None:
    data = wav(channels=3)
    assert whole_samples(data) == 30 and whole_samples(data + b"tail" * 9) == 30
    for missing in range(1, 60):
        assert whole_samples(data[:-missing]) == ((60 - missing) // 6 * 3 or None)
    assert whole_samples(data[:-60]) is None


def test_wav_headers_that_contradict_themselves_are_left_to_pyav() -> None:
    assert whole_samples(wav(block=4)) == 20 and whole_samples(wav(channels=1)) == 10
    assert whole_samples(wav(block=3)) is None and whole_samples(wav(block=5)) is None
    assert whole_samples(wav(channels=0, block=0)) is None
    for channels, expected in ((MAX_CHANNELS, 10 * MAX_CHANNELS), (MAX_CHANNELS + 1, None)):
        assert whole_samples(wav(channels=channels)) == expected
    for rate in (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE):
        assert whole_samples(wav(rate=rate)) == 20
    for rate in (MIN_SAMPLE_RATE - 1, MAX_SAMPLE_RATE + 1):
        assert whole_samples(wav(rate=rate)) is None


def flac(samples: int, *, channels: int = 2, rate: int = 44100, bits: int = 16, first: int = 0) -> bytes:
    """The stream information block (https://xiph.org/flac/format.html)."""
    packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | samples
    return b"fLaC" + bytes([first]) + b"\0\0\x22" + bytes(10) + packed.to_bytes(8, "big") + bytes(16)


@pytest.mark.parametrize("channels", range(1, 9))
def test_flac_says_its_samples_channels_and_rate(channels: int) -> None:
    most = MAX_WHOLE_SAMPLES // channels
    for bits in (4, 16, 24, 32):
        for first in (0, 0x80):
            assert whole_samples(flac(most, channels=channels, bits=bits, first=first)) == most * channels
    assert whole_samples(flac(most + 1, channels=channels)) is None
    assert whole_samples(flac(1, channels=channels)) == channels and whole_samples(flac(0, channels=channels)) is None
    for rate in (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE):
        assert whole_samples(flac(9, channels=channels, rate=rate)) == 9 * channels
        other = rate - 1 if rate == MIN_SAMPLE_RATE else rate + 1
        assert whole_samples(flac(9, channels=channels, rate=other)) is None


def test_flac_without_its_first_block_is_left_to_pyav() -> None:
    good = flac(9)
    for first in (1, 4, 0x81):
        assert whole_samples(flac(9, first=first)) is None
    assert whole_samples(good[:4]) is None and whole_samples(b"fLaX" + good[4:]) is None and whole_samples(b"") is None
    assert whole_samples(flac(2**36 - 1)) is None and whole_samples(flac(2**35 + 5)) is None
