"""What a clip or a sound is, told by its first bytes and never by its name: FFmpeg's name of the demuxer.

FFmpeg's own guessing would also accept playlists that open other files. Raw streams have no magic number, so that their
first headers are checked, last in order.
"""

import re

from m5ds.data.decode.probes.media import PNG_SIGNATURE, is_animated_png, unknown
from m5ds.inputs.media import MediaError

_STREAM_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"free", "mov"),
    (4, b"wide", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"WAVE", "wav"),
    (0, b"RF64", "wav"),
    (0, b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0", "w64"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, b"\0\0\1\xba", "mpeg"),
    (0, b"nut/multimedia container\0", "nut"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02", "mxf"),
    (0, b"DKIF", "ivf"),
    (0, b".RMF\0\0\0", "rm"),
    (0, b"\xb7\xd8\x00\x20\x37\x49\xda\x11", "wtv"),
    (0, b"\x12\0\x0a", "obu"),
    (0, b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (0, b"MAC ", "ape"),
    (0, b"wvpk", "wv"),
    (0, b"DSD ", "dsf"),
    (0, b"MP+", "mpc"),
    (0, b"MPCK", "mpc8"),
    (0, b"TTA1", "tta"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"#!AMR", "amr"),
    (0, b"Creative Voice File\x1a", "voc"),
    (0, b"\x7f\xfe\x80\x01", "dts"),
    (4, b"\xf8\x72\x6f\xba", "truehd"),
    (4, b"\xf8\x72\x6f\xbb", "mlp"),
    (0, b"GIF8", "gif"),
)
"""(offset, bytes, FFmpeg's name of the demuxer)."""

_JUNK_BYTES = 2**16
"""How far FFmpeg's MP3 demuxer looks for the first frame."""
_LOW_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_KBITS = {
    (True, 1): range(32, 480, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): _LOW_KBITS,
    (False, 3): _LOW_KBITS,
}
"""Rates of the numbers 1 to 14, by (is version 1, layer)."""
_H264_SPS = re.compile(
    rb"\x00\x00\x01[\x07\x27\x47\x67][\x2c\x42\x4d\x53\x56\x58\x64\x6e\x76\x7a\x80\x86\x87\x8a\x8b\xf4]"
)
"""A sequence parameter set of a profile that exists (ITU-T H.264, annexes A, F, G and H)."""


def stream_format(data: bytes) -> str:
    """FFmpeg's name of the demuxer of a clip or sound; MediaError for an unknown one."""
    for offset, magic, demuxer in _STREAM_MAGIC:
        if data.startswith(magic, offset):
            return demuxer
    if data.startswith(PNG_SIGNATURE) and is_animated_png(data):
        return "apng"
    start = _after_id3(data)
    if data.startswith(b"fLaC", start):
        return "flac"
    if len(data) > start + 4 and data[start] == 0xFF and data[start + 1] & 0xE0 == 0xE0:
        return "aac" if data[start + 1] & 0xF6 == 0xF0 else "mp3"
    if data.startswith(b"MP+", start):
        return "mpc"
    if start:
        return "mp3"  # padding or junk between the tag and the first frame: FFmpeg looks for it
    if data.startswith(b"\x0b\x77"):
        return "eac3" if len(data) > 5 and data[5] >> 3 > 10 else "ac3"
    for first, step in ((0, 188), (4, 192)):
        if len(data) > first + 2 * step and data[first] == data[first + step] == data[first + 2 * step] == 0x47:
            return "mpegts"
    name = _raw_video(data)
    if name is None and any(_mp3_frames(data, place, 3) for place in _sync_words(data)):
        name = "mp3"
    if name is None:
        raise MediaError(unknown(data, "clip or sound"))
    return name


def _after_id3(data: bytes) -> int:
    """Where the file goes on after an ID3v2 tag; 0 where it has none."""
    if not data.startswith(b"ID3") or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _raw_video(data: bytes) -> str | None:
    """The demuxer of a raw stream, from the kind of unit behind its first start code."""
    if data.startswith(b"\xff\xd8\xff"):
        return "mjpeg" if b"\xff\xd9\xff\xd8\xff" in data else None
    start = 4 if data.startswith(b"\0\0\0\1") else 3 if data.startswith(b"\0\0\1") else None
    if start is None or len(data) < start + 6:
        return None
    unit, after = data[start], data[start + 1]
    if unit == 0xB3:
        return "mpegvideo"
    has_object_layer = data.startswith(b"\0\0\1", start + 1) and 0x20 <= data[start + 4] <= 0x2F
    if unit == 0xB0 or (unit < 0x20 and has_object_layer):
        return "m4v"
    if unit in (0x40, 0x42, 0x46) and after == 1:  # HEVC: video or sequence parameters, delimiter
        return "hevc"
    if (unit in (0x06, 0x09) or unit & 0x9F == 0x07) and _H264_SPS.search(data, 0, _JUNK_BYTES):
        return "h264"
    return None


def _sync_words(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(rb"\xff[\xe2-\xff]", data[:_JUNK_BYTES])]


def _mp3_frames(data: bytes, place: int, count: int) -> bool:
    """Whether `count` MPEG audio frames of one kind follow each other (ISO/IEC 11172-3, 2.4.1.3)."""
    kind = None
    for _ in range(count):
        if place + 4 > len(data) or data[place] != 0xFF or data[place + 1] & 0xE0 != 0xE0:
            return False
        version, layer = data[place + 1] >> 3 & 3, 4 - (data[place + 1] >> 1 & 3)
        bits, rate = data[place + 2] >> 4, data[place + 2] >> 2 & 3
        if version == 1 or layer == 4 or bits in (0, 15) or rate == 3 or kind not in (None, (version, layer, rate)):
            return False
        kind = version, layer, rate
        hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        kbits, padding = _MP3_KBITS[version == 3, layer][bits - 1], data[place + 2] >> 1 & 1
        # A frame is 384, 576 or 1152 samples long, and counted in slots.
        slots, slot_bytes = (12, 4) if layer == 1 else (72, 1) if layer == 3 and version != 3 else (144, 1)
        place += (slots * 1000 * kbits // hertz + padding) * slot_bytes
    return True
