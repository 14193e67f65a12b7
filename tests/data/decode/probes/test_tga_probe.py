"""Every field of a TGA header must make sense, and the pixels must be there (TGA specification, version 2.0)."""

import itertools
import struct

from m5ds.data.decode.probes.tga import is_tga, readable_tga

DEPTHS = {1: {8}, 2: {15, 16, 24, 32}, 3: {8, 16}}
ATTRIBUTES = {8: {0, 8}, 15: {0, 1}, 16: {0, 1, 8}, 24: {0, 8}, 32: {0, 8}}


def header(
    kind: int = 3,
    depth: int = 8,
    *,
    height: int = 4,
    width: int = 3,
    flags: int = 0,
    id_bytes: int = 0,
    has_map: int = 0,
    map_first: int = 0,
    map_length: int = 0,
    map_depth: int = 0,
) -> bytes:
    fields = (id_bytes, has_map, kind, map_first, map_length, map_depth, 7, 9, width, height, depth, flags)
    return struct.pack("<BBBHHBHHHHBB", *fields)


def test_kinds_depths_and_attribute_bits_go_together() -> None:
    for kind, depth, flags in itertools.product(range(256), (0, 7, 8, 9, 14, 15, 16, 17, 24, 32, 33), (0, 1, 2, 8)):
        mapped = {"has_map": 1, "map_length": 1, "map_depth": 24} if kind & 7 == 1 else {}
        good = kind in (1, 2, 3, 9, 10, 11) and depth in DEPTHS[kind & 7] and flags in ATTRIBUTES[depth]
        data = header(kind, depth, flags=flags, **mapped) + bytes(200)
        assert is_tga(data) is good, (kind, depth, flags)


def test_flags_may_say_the_corner_and_nothing_unknown() -> None:
    for flags in range(256):
        assert is_tga(header(flags=flags) + bytes(12)) is (flags & 0xF in (0, 8) and flags < 0x40)


def test_a_picture_has_sides_and_all_its_pixels() -> None:
    for kind, depth, pixel_bytes in ((3, 8, 1), (2, 15, 2), (2, 16, 2), (2, 24, 3), (2, 32, 4)):
        for id_bytes in (0, 5):
            data = header(kind, depth, id_bytes=id_bytes) + bytes(id_bytes + 12 * pixel_bytes)
            assert is_tga(data) and is_tga(data + b"x") and not is_tga(data[:-1])
    one = header(height=1, width=1) + b"\0"
    assert is_tga(one) and not is_tga(one[:17])
    assert not is_tga(header(height=0) + bytes(99)) and not is_tga(header(width=0) + bytes(99))


def test_a_footer_is_enough() -> None:
    assert is_tga(b"anything" + b"TRUEVISION-XFILE.\0") and not is_tga(b"TRUEVISION-XFILE.\0" + b"anything")


def test_a_colour_map_must_be_there_and_small_enough() -> None:
    for map_depth in range(0, 41):
        entry_bytes = {15: 2, 16: 2, 24: 3, 32: 4}.get(map_depth)
        size = 2 * (entry_bytes or 1) + 12
        data = header(1, has_map=1, map_length=2, map_depth=map_depth) + bytes(size)
        assert is_tga(data) is (entry_bytes is not None), map_depth
        assert not is_tga(data[:-1])
    for first, length, good in ((0, 1, True), (0, 0, False), (2**16 - 1, 1, True), (2**16 - 1, 2, False)):
        fields = {"has_map": 1, "map_first": first, "map_length": length, "map_depth": 16}
        assert is_tga(header(1, **fields) + bytes(99)) is good
    assert is_tga(header(2, 24, has_map=1, map_length=1, map_depth=24) + bytes(3 + 36))
    assert not is_tga(header(2, 24, has_map=2, map_length=1, map_depth=24) + bytes(99))


def test_without_a_colour_map_its_fields_are_empty() -> None:
    assert not is_tga(header(1) + bytes(99))
    for map_depth in range(256):
        assert is_tga(header(map_depth=map_depth) + bytes(12)) is (map_depth in (0, 15, 16, 24, 32))
    assert not is_tga(header(map_first=1) + bytes(99)) and not is_tga(header(map_length=1) + bytes(99))


def test_the_runs_of_a_compressed_picture_must_reach_its_end() -> None:
    """300 pixels: runs of one colour, plain pixels, and both."""
    for depth, pixel_bytes in ((16, 2), (24, 3), (32, 4)):
        head, colour = header(10, depth, height=100), b"c" * pixel_bytes
        plain = b"\x7f" + colour * 128
        for body in (
            (b"\xff" + colour) * 2 + bytes([0x80 | 43]) + colour,
            plain * 2 + bytes([43]) + colour * 44,
            plain + b"\xff" + colour + bytes([43]) + colour * 44,
            (b"\x80" + colour) * 300,
            (b"\0" + colour) * 300,
        ):
            assert is_tga(head + body) and is_tga(head + body + b"tail")
            assert not is_tga(head + body[:-1]) and not is_tga(head + body[: -pixel_bytes - 1])
    assert is_tga(header(10, 24, height=100) + b"\xffabc" * 3), "a run may go on past the end"


def test_a_hundred_thousand_runs_are_followed() -> None:
    data = header(11, 8, height=1000, width=1000)
    assert is_tga(data + b"\x80c" * 100_000) and not is_tga(data + b"\x80c" * 99_999)


def test_fifteen_bits_are_called_sixteen_where_they_stand() -> None:
    data = bytes(range(18)) + b"\x0f" * 5
    data = data[:7] + b"\x0f" + data[8:15] + b"\x0e\x0f" + data[17:]
    found = readable_tga(data)
    assert [place for place in range(len(data)) if found[place] != data[place]] == [7, 16]
    assert found[7] == found[16] == 16
    assert readable_tga(bytes(range(18))) == bytes(range(18))
