"""Clips and sounds are told by their first bytes: every format, and what only resembles one."""

import itertools

import pytest

from m5ds.data.decode.probes.streams import stream_format
from m5ds.inputs.media import MediaError

STARTS = {
    "mov": [b"....ftyp", b"....moov", b"....mdat", b"....free", b"....wide"],
    "matroska": [b"\x1a\x45\xdf\xa3"],
    "avi": [b"RIFF....AVI "],
    "wav": [b"RIFF....WAVE", b"RF64"],
    "w64": [b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0"],
    "ogg": [b"OggS"],
    "flac": [b"fLaC"],
    "flv": [b"FLV\x01"],
    "asf": [b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"],
    "aiff": [b"FORM....AIFF", b"FORM....AIFC"],
    "mpeg": [b"\0\0\1\xba"],
    "nut": [b"nut/multimedia container\0"],
    "mxf": [b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02"],
    "ivf": [b"DKIF"],
    "rm": [b".RMF\0\0\0"],
    "wtv": [b"\xb7\xd8\x00\x20\x37\x49\xda\x11"],
    "obu": [b"\x12\0\x0a"],
    "yuv4mpegpipe": [b"YUV4MPEG2 "],
    "ape": [b"MAC "],
    "wv": [b"wvpk"],
    "dsf": [b"DSD "],
    "mpc": [b"MP+"],
    "mpc8": [b"MPCK"],
    "tta": [b"TTA1"],
    "caf": [b"caff"],
    "au": [b".snd"],
    "amr": [b"#!AMR"],
    "voc": [b"Creative Voice File\x1a"],
    "dts": [b"\x7f\xfe\x80\x01"],
    "truehd": [b"....\xf8\x72\x6f\xba"],
    "mlp": [b"....\xf8\x72\x6f\xbb"],
    "gif": [b"GIF8"],
}
KBITS = {  # ISO/IEC 11172-3 and 13818-3: (is version 1, layer) -> rates by number, 1 to 14
    (True, 1): [32 * number for number in range(1, 15)],
    (True, 2): [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    (True, 3): [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    (False, 1): [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    (False, 2): [*range(8, 65, 8), *range(80, 161, 16)],
    (False, 3): [*range(8, 65, 8), *range(80, 161, 16)],
}


def told(data: bytes) -> str | None:
    """The format's name; None where none is recognised."""
    try:
        return stream_format(data)
    except MediaError:
        return None


def test_every_format_is_told_where_its_mark_stands_and_nowhere_else() -> None:
    for name, starts in STARTS.items():
        for start in starts:
            assert told(start + b"x" * 20) == name
            assert told(b"x" + start + b"x" * 20) is None, name


def mpeg_header(version: int, layer: int, bits: int, rate: int, padding: int = 0) -> bytes:
    return bytes([0xFF, 0xE1 | version << 3 | (4 - layer) << 1, bits << 4 | rate << 2 | padding << 1, 0])


def mpeg_bytes(version: int, layer: int, bits: int, rate: int, padding: int = 0) -> int:
    """Length of a frame: 384 samples in slots of 4 bytes, 1152 samples, or 576 in the third layer of low rates."""
    hertz = [44100, 48000, 32000][rate] / {3: 1, 2: 2, 0: 4}[version]
    bytes_a_second = KBITS[version == 3, layer][bits - 1] * 1000 / 8
    if layer == 1:
        return (int(384 / 4 * bytes_a_second / hertz) + padding) * 4
    samples = 576 if layer == 3 and version != 3 else 1152
    return int(samples * bytes_a_second / hertz) + padding


def test_three_mpeg_frames_in_a_row_are_mp3_at_every_rate() -> None:
    choices = itertools.product((3, 2, 0), (1, 2, 3), range(1, 15), range(3), (0, 1))
    for choice in choices:
        header, length = mpeg_header(*choice), mpeg_bytes(*choice)
        frame = header + bytes(length - 4)
        assert told(b"junk" + frame * 2 + header) == "mp3", choice
        assert told(b"junk" + frame * 2 + header[:3]) is None, choice
        assert told(b"junk" + frame * 2 + b"\0" + header) is None, choice


def test_mpeg_frames_must_be_of_one_kind_and_of_none_that_is_reserved() -> None:
    good = (3, 3, 9, 0)
    frame, length = mpeg_header(*good) + bytes(mpeg_bytes(*good) - 4), mpeg_bytes(*good)
    assert told(b"junk" + frame * 3) == "mp3"
    louder = (3, 3, 10, 0)
    assert told(b"junk" + frame + mpeg_header(*louder) + bytes(mpeg_bytes(*louder) - 4) + frame) == "mp3"
    for other in ((2, 3, 9, 0), (3, 2, 9, 0), (3, 3, 9, 1)):
        assert told(b"junk" + frame + mpeg_header(*other) + bytes(mpeg_bytes(*other) - 4) + frame) is None
    for reserved in ((1, 3, 9, 0), (3, 4, 9, 0), (3, 3, 9, 3)):
        assert told(b"junk" + (mpeg_header(*reserved) + bytes(length - 4)) * 3) is None
    for bits in (0, 15):
        for rate_number in range(1, 15):
            spaced = mpeg_header(3, 3, bits, 0) + bytes(mpeg_bytes(3, 3, rate_number, 0) - 4)
            assert told(b"junk" + spaced * 3) is None
    for place, value in ((0, 0xFE), (1, 0xDB)):
        broken = bytearray(frame)
        broken[place] = value
        assert told(b"junk" + frame + bytes(broken) + frame) is None


def test_junk_ahead_of_a_frame_is_passed_over_up_to_64_kib() -> None:
    frames = (mpeg_header(3, 3, 1, 0) + bytes(mpeg_bytes(3, 3, 1, 0) - 4)) * 3
    assert told(b"j" * (2**16 - 2) + frames) == "mp3"
    assert told(b"j" * (2**16 - 1) + frames) is None


def test_a_file_that_begins_with_a_frame_is_mp3_or_aac() -> None:
    for second in range(0xE0, 0x100):
        expected = "aac" if second in (0xF0, 0xF1, 0xF8, 0xF9) else "mp3"
        assert told(bytes([0xFF, second, 0, 0, 0])) == expected
    assert told(b"\xff\xfb\x90\0") is None and told(b"\xff\xdf\0\0\0") is None and told(b"\xfe\xfb\0\0\0") is None


def test_what_follows_an_id3_tag_counts() -> None:
    """Seven bits a byte; the tag may hold what looks like another format."""
    size = 1 << 21 | 2 << 14 | 3 << 7 | 4
    for sizes in (bytes([1, 2, 3, 4]), bytes([0x81, 0x82, 0x83, 0x84])):
        tag = b"ID3\4\0\0" + sizes + b"fLaC" + bytes(size - 4)
        assert told(tag + b"fLaC") == "flac"
        assert told(tag + b"MP+") == "mpc"
        assert told(tag + b"\xff\xf1\0\0\0") == "aac" and told(tag + b"\xff\xf1\0\0") == "mp3"
        assert told(tag + b"\0fLaC") == "mp3"
    assert told(b"ID3\4\0\0\0\0\0") is None and told(b"ID3\4\0\0\0\0\0\0") == "mp3"
    assert told(b"xx" + b"ID3\4\0\0\0\0\0\0fLaC") is None and told(b"x" * 12 + b"ID3") is None


def test_dolby_is_told_by_its_stream_version() -> None:
    assert told(b"\x0b\x77\0\0\0\x50") == "ac3" and told(b"\x0b\x77\0\0\0\x58") == "eac3"
    assert told(b"\x0b\x77\0\0\0") == "ac3" and told(b"\0" * 4 + b"\x0b\x77") is None


@pytest.mark.parametrize(("first", "step"), [(0, 188), (4, 192)])
def test_a_transport_stream_has_three_sync_bytes(first: int, step: int) -> None:
    data = bytearray(first + 2 * step + 1)
    places = (first, first + step, first + 2 * step)
    for place in places:
        data[place] = 0x47
    assert told(bytes(data)) == "mpegts" and told(bytes(data[:-1])) is None
    for place in places:
        other = bytearray(data)
        other[place] = 0x48
        assert told(bytes(other)) is None


@pytest.mark.parametrize("code", [b"\0\0\1", b"\0\0\0\1"])
def test_raw_video_is_told_by_the_unit_behind_its_first_start_code(code: bytes) -> None:
    def unit(*data: int) -> str | None:
        return told(code + bytes(data))

    assert unit(0xB3, 0, 0, 0, 0, 0) == "mpegvideo" and unit(0xB3, 0, 0, 0, 0) is None
    assert unit(0xB0, 1, 2, 3, 4, 5) == "m4v" and unit(0xB1, 1, 2, 3, 4, 5) is None
    for number, layer, expected in (
        (0x00, 0x20, "m4v"),
        (0x1F, 0x2F, "m4v"),
        (0x20, 0x20, None),
        (0x00, 0x1F, None),
        (0x00, 0x30, None),
    ):
        assert unit(number, 0, 0, 1, layer, 0) == expected
        assert unit(number, 0, 1, 1, layer, 0) is None, "no start code ahead of the layer"
    for number in range(256):
        if number not in (0xB0, 0xB3, 0xBA):  # the last is a program stream's
            expected = "hevc" if number in (0x40, 0x42, 0x46) else None
            assert unit(number, 1, 9, 9, 9, 9) == expected
            assert unit(number, 2, 9, 9, 9, 9) is None


def test_h264_begins_with_parameters_of_a_profile_that_exists() -> None:
    parameters = b"\0\0\1\x67\x64"
    for number in range(256):
        if number not in (0xB0, 0xB3, 0xBA):  # MPEG's own
            expected = "h264" if number in (0x06, 0x09, 0x07, 0x27, 0x47, 0x67) else None
            assert told(bytes([0, 0, 1, number, 9]) + parameters + bytes(9)) == expected, number
    assert told(b"\0\0\1\x67\x64\0\0\0\0") == "h264" and told(b"\0\0\1\x67\x65\0\0\0\0") is None
    assert told(b"\0\0\1\x09" + bytes(2**16 - 9) + parameters) == "h264"
    assert told(b"\0\0\1\x09" + bytes(2**16 - 8) + parameters) is None


def test_raw_mjpeg_is_one_picture_after_another() -> None:
    assert told(b"\xff\xd8\xff\xe0..\xff\xd9\xff\xd8\xff") == "mjpeg"
    assert told(b"\xff\xd8\xff\xe0..\xff\xd9") is None and told(b"..\xff\xd9\xff\xd8\xff") is None
