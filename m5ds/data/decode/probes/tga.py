"""Whether a file is a TGA picture: the format has no magic number, and no footer before its second version.

So every field of the header must make sense, and the pixels that it announces must be there. Source: Truevision TGA
file format specification, version 2.0.
"""

import struct

_DEPTHS = {1: (8,), 2: (15, 16, 24, 32), 3: (8, 16)}
"""Bits a pixel of pictures with a colour map, in true colour and in grey."""
_ATTRIBUTE_BITS = {8: (0, 8), 15: (0, 1), 16: (0, 1, 8), 24: (0, 8), 32: (0, 8)}
_MAP_DEPTHS = (15, 16, 24, 32)
_MAX_RUNS = 100_000
"""Most runs of a compressed picture that are followed."""


def is_tga(data: bytes) -> bool:
    """Whether the header is one and the pixels are there; a truncated picture without a footer is not recognised."""
    if data.endswith(b"TRUEVISION-XFILE.\0"):
        return True
    if len(data) < 18:
        return False
    (id_bytes, has_map, kind, map_first, map_length, map_depth, _, _, width, height, depth, flags) = struct.unpack_from(
        "<BBBHHBHHHHBB", data
    )
    if kind & 7 not in _DEPTHS or kind & ~0xF or has_map > 1 or width < 1 or height < 1 or flags & 0xC0:
        return False
    if depth not in _DEPTHS[kind & 7] or flags & 0xF not in _ATTRIBUTE_BITS[depth]:
        return False
    if has_map:
        if map_depth not in _MAP_DEPTHS or map_length < 1 or map_first + map_length > 2**16:
            return False
    elif kind & 7 == 1 or map_first or map_length or map_depth not in (0, *_MAP_DEPTHS):
        return False
    start = 18 + id_bytes + (map_length * ((map_depth + 7) // 8) if has_map else 0)
    pixel_bytes = (depth + 7) // 8
    if not kind & 8:
        return start + width * height * pixel_bytes <= len(data)
    return _runs_reach(data, start, pixel_bytes, width * height)


def readable_tga(data: bytes) -> bytes:
    """The file with 15 bits a pixel or map entry called 16: the same bytes under the name that Pillow knows."""
    changed = bytearray(data)
    for place in (7, 16):
        if changed[place] == 15:
            changed[place] = 16
    return bytes(changed)


def _runs_reach(data: bytes, place: int, pixel_bytes: int, pixels: int) -> bool:
    for _ in range(_MAX_RUNS):
        if place >= len(data):
            return False
        count = (data[place] & 0x7F) + 1
        place += 1 + (pixel_bytes if data[place] & 0x80 else count * pixel_bytes)
        pixels -= count
        if pixels <= 0:
            return place <= len(data)
    return True
