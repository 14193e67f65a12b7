"""The frame sizes that VP8, VP9 and MJPEG packets themselves claim, and the colours of VP9.

DALI's CPU decoder writes past its buffers when a packet's frame is larger than the container says (a damaged bit is
enough), so a clip goes to it only when every packet's own size agrees. Sources: RFC 6386 section 9.1 (VP8), the VP9
bitstream specification sections 6.2 and 7.2 and its annex B (superframes).
"""

from m5ds.data.decode.probes.media import jpeg_frame

_VP8, _VP9 = ("vp8", "libvpx"), ("vp9", "libvpx-vp9")
MAY_HIDE = (*_VP8, *_VP9)
"""FFmpeg's decoders of codecs in which a packet may bring no picture to show."""

_VP9_SYNC = 0x498342
_VP9_MATRICES = (0, 1, 3)
"""Colour spaces that DALI converts rightly: unknown, BT.601 and its other name, SMPTE 170M."""


class _Bits:
    """Big-endian bits of a packet; IndexError past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            byte = self._data[self._place >> 3]
            value = value << 1 | byte >> (7 - (self._place & 7)) & 1
            self._place += 1
        return value


def packet_agrees(codec: str, packet: bytes, height: int, width: int) -> bool:
    """Whether a packet of a `vp8`, `vp9` or `mjpeg` stream shows one picture, claims no size but height x width and no
    colours but those of BT.601.
    """
    try:
        if codec == "vp8":
            return _vp8_agrees(packet, height, width)
        if codec == "vp9":
            return all(_vp9_agrees(frame, height, width) for frame in _vp9_frames(packet))
        if codec == "mjpeg":
            frame = jpeg_frame(packet)
            return frame is not None and frame[:2] == (height, width)
    except IndexError:
        return False
    return False


def shows_picture(codec: str, packet: bytes) -> bool:
    """Whether a packet brings a picture to show: those of VP8 and VP9 may hold references that are never shown."""
    try:
        if codec in _VP8:
            return bool(packet[0] & 0x10)
        if codec in _VP9:
            return any(_vp9_shown(frame) for frame in _vp9_frames(packet))
    except IndexError:
        return True  # damaged: the decoder will say
    return True


def _vp9_shown(frame: bytes) -> bool:
    bits = _Bits(frame[:2])
    bits.take(2)
    if bits.take(1) + bits.take(1) == 2:
        bits.take(1)  # profile 3 has a reserved bit
    if bits.take(1):
        return True  # shows a frame again
    bits.take(1)
    return bool(bits.take(1))


def _vp8_agrees(packet: bytes, height: int, width: int) -> bool:
    is_inter_frame, is_shown = packet[0] & 1, packet[0] & 0x10
    if not is_shown:
        return False  # a reference that is not shown: DALI and timestamps would count differently
    if is_inter_frame:
        return True
    return packet[3:6] == b"\x9d\x01\x2a" and (
        (packet[6] | packet[7] << 8) & 0x3FFF == width and (packet[8] | packet[9] << 8) & 0x3FFF == height
    )


def _vp9_frames(packet: bytes) -> list[bytes]:
    """The frames of a superframe, or the packet itself."""
    marker = packet[-1]
    if marker & 0xE0 != 0xC0:
        return [packet]
    num_frames, num_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    start = len(packet) - 2 - num_frames * num_bytes
    if start < 0 or packet[start] != marker:
        return [packet]
    frames, place = [], 0
    for number in range(num_frames):
        at = start + 1 + number * num_bytes
        size = int.from_bytes(packet[at : at + num_bytes], "little")
        if size == 0 or place + size > start:
            raise IndexError("superframe index past the packet")
        frames.append(packet[place : place + size])
        place += size
    return frames


def _vp9_agrees(frame: bytes, height: int, width: int) -> bool:
    bits = _Bits(frame[:64])
    if bits.take(2) != 2:
        return False
    profile = bits.take(1) | bits.take(1) << 1
    if profile:
        return False  # 10 bits or 4:4:4: PyAV reads them
    if bits.take(1):
        return True  # shows a frame again
    is_inter_frame, is_shown, is_resilient = bits.take(1), bits.take(1), bits.take(1)
    if not is_inter_frame:
        if bits.take(24) != _VP9_SYNC:
            return False
        if bits.take(3) not in _VP9_MATRICES:
            return False
        bits.take(1)  # colour range
        return _vp9_size_agrees(bits, height, width)
    is_intra_only = 0 if is_shown else bits.take(1)
    if not is_resilient:
        bits.take(2)  # reset_frame_context
    if is_intra_only:
        if bits.take(24) != _VP9_SYNC:
            return False
        bits.take(8)  # refresh_frame_flags
        return _vp9_size_agrees(bits, height, width)
    bits.take(8 + 3 * 4)  # refresh_frame_flags; three references, each with a sign
    for _ in range(3):
        if bits.take(1):
            return True  # the size of a reference, which agreed
    return _vp9_size_agrees(bits, height, width)


def _vp9_size_agrees(bits: _Bits, height: int, width: int) -> bool:
    return bits.take(16) + 1 == width and bits.take(16) + 1 == height
