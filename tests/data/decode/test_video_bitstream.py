"""What packets of VP8, VP9 and MJPEG claim, written bit by bit from their specifications."""

import struct

import pytest

from m5ds.data.decode.video_bitstream import packet_agrees, shows_picture

HEIGHT, WIDTH = 300, 500


def packed(*fields: tuple[int, int]) -> bytes:
    """(value, number of bits) fields, most significant bit first, filled up with ones."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def vp9(
    *,
    marker: int = 2,
    profile: int = 0,
    again: int = 0,
    inter: int = 0,
    shown: int = 1,
    resilient: int = 0,
    intra_only: int = 0,
    sync: int = 0x498342,
    colours: int = 1,
    full_range: int = 0,
    height: int = HEIGHT,
    width: int = WIDTH,
    from_reference: int | None = None,
) -> bytes:
    """An uncompressed header (VP9 bitstream specification, 6.2)."""
    fields = [(marker, 2), (profile & 1, 1), (profile >> 1, 1)]
    fields += [(0, 1)] if profile == 3 else []
    fields.append((again, 1))
    if again:
        return packed(*fields, (5, 3))
    fields += [(inter, 1), (shown, 1), (resilient, 1)]
    size = [(width - 1, 16), (height - 1, 16)]
    if not inter:
        return packed(*fields, (sync, 24), (colours, 3), (full_range, 1), *size)
    if not shown:
        fields.append((intra_only, 1))
    if not resilient:
        fields.append((2, 2))
    if intra_only:
        return packed(*fields, (sync, 24), (0b10110110, 8), *size)
    fields += [(0b10110110, 8)] + [(3, 3), (1, 1)] * 3
    if from_reference is not None:
        return packed(*fields, *[(0, 1)] * from_reference, (1, 1))
    return packed(*fields, (0, 3), *size)


SIZES = ((HEIGHT, WIDTH, True), (HEIGHT, WIDTH + 1, False), (HEIGHT - 1, WIDTH, False), (HEIGHT + 1, WIDTH, False))


def agrees(packet: bytes) -> bool:
    return packet_agrees("vp9", packet, HEIGHT, WIDTH)


@pytest.mark.parametrize("resilient", [0, 1])
@pytest.mark.parametrize("shown", [0, 1])
def test_every_vp9_frame_must_have_the_size_of_the_clip(shown: int, resilient: int) -> None:
    kinds = [{}, {"inter": 1}] + ([] if shown else [{"inter": 1, "intra_only": 1}])
    for kind in kinds:
        for height, width, expected in SIZES:
            packet = vp9(**kind, shown=shown, resilient=resilient, height=height, width=width)
            assert agrees(packet) is expected, kind
            assert not agrees(packet[:-1]), "cut inside the size"
            assert shows_picture("vp9", packet) is shows_picture("libvpx-vp9", packet) is bool(shown)


def test_a_vp9_frame_may_take_its_size_from_one_of_three_references() -> None:
    for reference in range(3):
        for shown in (0, 1):
            packet = vp9(inter=1, shown=shown, from_reference=reference)
            assert agrees(packet)
            assert not packet_agrees("vp9", vp9(inter=1, shown=shown, height=9), HEIGHT, WIDTH)


def test_vp9_headers_that_are_damaged_or_of_other_pixels_do_not_agree() -> None:
    assert agrees(vp9()) and agrees(vp9(full_range=1))
    for marker in (0, 1, 3):
        assert not agrees(vp9(marker=marker))
    for profile in (1, 2, 3):
        assert not agrees(vp9(profile=profile))
    for bit in range(24):
        assert not agrees(vp9(sync=0x498342 ^ 1 << bit))
        assert not agrees(vp9(inter=1, shown=0, intra_only=1, sync=0x498342 ^ 1 << bit))
    assert agrees(vp9(again=1)) and not agrees(vp9(again=1, marker=1)) and not agrees(vp9(again=1, profile=1))
    # Unknown, BT.601 and SMPTE 170M; not BT.709, SMPTE 240M, BT.2020, what is reserved, RGB.
    assert [agrees(vp9(colours=number)) for number in range(8)] == [True, True, False, True, *[False] * 4]


def superframe(*frames: bytes, num_bytes: int = 2) -> bytes:
    """Annex B: sizes between two equal markers, behind the frames."""
    marker = bytes([0b11000000 | (num_bytes - 1) << 3 | len(frames) - 1])
    sizes = b"".join(len(frame).to_bytes(num_bytes, "little") for frame in frames)
    return b"".join(frames) + marker + sizes + marker


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_all_frames_of_a_superframe_count(count: int, num_bytes: int) -> None:
    hidden, seen, wrong = vp9(shown=0) + bytes(3), vp9(inter=1, from_reference=1), vp9(height=HEIGHT + 1)
    assert agrees(superframe(*[hidden] * (count - 1), seen, num_bytes=num_bytes))
    assert shows_picture("vp9", superframe(*[hidden] * (count - 1), seen, num_bytes=num_bytes))
    assert not shows_picture("vp9", superframe(*[hidden] * count, num_bytes=num_bytes))
    for place in range(count):
        frames = [hidden] * count
        frames[place] = wrong
        assert not agrees(superframe(*frames, num_bytes=num_bytes))
        assert shows_picture("vp9", superframe(*frames, num_bytes=num_bytes))


def test_a_superframe_index_must_fit_its_packet() -> None:
    good = superframe(vp9(shown=0), vp9(), num_bytes=1)
    index = good[-4:]
    first = len(vp9())
    assert agrees(good) and agrees(vp9(shown=0) + vp9() + index)
    for sizes in (bytes([0, first]), bytes([first, first + 1]), bytes([first, 255])):
        broken = good[:-3] + sizes + good[-1:]
        assert not agrees(broken) and shows_picture("vp9", broken), "left to the decoder"
    assert agrees(good[:-3] + bytes([first, first]) + good[-1:])
    # Without its first marker the last byte is a frame's own.
    assert agrees(vp9() + b"x" + index[1:]) and not agrees(vp9(height=9) + b"x" + index[1:])
    assert not agrees(index[1:]) and not agrees(b"\xc0") and not agrees(b"")
    assert shows_picture("vp9", b"")


def test_a_superframe_may_fill_its_packet_to_the_first_byte() -> None:
    """An index that begins the packet announces frames that are not there."""
    for count in (1, 2):
        marker = bytes([0b11000000 | count - 1])
        assert not agrees(marker + b"\1" * count + marker)
        assert shows_picture("vp9", marker + b"\1" * count + marker)


def vp8(
    *, inter: int = 0, shown: int = 1, start: bytes = b"\x9d\x01\x2a", height: int = HEIGHT, width: int = WIDTH
) -> bytes:
    """A frame tag and a key frame's header (RFC 6386, 9.1)."""
    return bytes([inter | shown << 4 | 0b10101000, 0, 0]) + start + struct.pack("<HH", width, height)


@pytest.mark.parametrize("scaling", [0, 0x4000, 0xC000])
def test_vp8_key_frames_must_have_the_size_of_the_clip(scaling: int) -> None:
    for height, width, expected in SIZES:
        packet = vp8(height=height | scaling, width=width | scaling)
        assert packet_agrees("vp8", packet, HEIGHT, WIDTH) is expected
        assert packet_agrees("vp8", vp8(inter=1, height=height, width=width), HEIGHT, WIDTH)
    for length in range(10):
        assert not packet_agrees("vp8", vp8()[:length], HEIGHT, WIDTH)
    assert not packet_agrees("vp8", vp8(start=b"\x9d\x01\x2b"), HEIGHT, WIDTH)
    assert packet_agrees("vp8", vp8(height=16383, width=16383), 16383, 16383)
    assert packet_agrees("vp8", vp8(height=255, width=256), 255, 256)


def test_hidden_vp8_references_do_not_agree_and_show_nothing() -> None:
    for inter in (0, 1):
        assert not packet_agrees("vp8", vp8(inter=inter, shown=0), HEIGHT, WIDTH)
        for codec in ("vp8", "libvpx"):
            assert shows_picture(codec, vp8(inter=inter)) and not shows_picture(codec, vp8(inter=inter, shown=0))
    assert shows_picture("vp8", b"") and shows_picture("mjpeg", b"") and shows_picture("av1", vp8(shown=0))


def test_mjpeg_pictures_must_have_the_size_of_the_clip() -> None:
    for height, width, expected in SIZES:
        frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, height, width, 3) + bytes(9)
        packet = b"\xff\xd8" + frame + b"\xff\xda\0\2"
        assert packet_agrees("mjpeg", packet, HEIGHT, WIDTH) is expected
        assert not packet_agrees("mjpeg", packet[:-1], HEIGHT, WIDTH)
    assert not packet_agrees("h264", b"\0\0\1", HEIGHT, WIDTH)
