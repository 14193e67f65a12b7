"""What a picture's first bytes and header say, byte by byte: who decodes it, how large it is, what is refused."""

import struct
import zlib

import pytest

from m5ds.data.decode.media import MAX_IMAGE_PIXELS
from m5ds.data.decode.probes.media import (
    ImageHeader,
    check_nested,
    image_format,
    image_header,
    is_animated_png,
    is_turned,
    jpeg_frame,
    unknown,
)
from m5ds.inputs.media import MediaError

STARTS = {
    "JPEG": [b"\xff\xd8\xff"],
    "PNG": [b"\x89PNG\r\n\x1a\n"],
    "WEBP": [b"RIFF....WEBP"],
    "GIF": [b"GIF8"],
    "TIFF": [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"],
    "JPEG2000": [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"],
    "AVIF": [b"....ftypavif", b"....ftypavis"],
    "PSD": [b"8BPS"],
    "DDS": [b"DDS "],
    "QOI": [b"qoif"],
    "SGI": [b"\x01\xda"],
    "ICO": [b"\0\0\1\0"],
    "PCX": [b"\x0a\x05\x01", b"\x0a\x03\x01", b"\x0a\x02\x01"],
    "ICNS": [b"icns"],
    "BMP": [b"BM"],
    "PPM": [b"P%d\n" % number for number in range(1, 7)] + [b"P6 ", b"P6\t"],
}


def told(data: bytes) -> str | None:
    try:
        return image_format(data)
    except MediaError:
        return None


def test_every_picture_format_is_told_where_its_mark_stands_and_nowhere_else() -> None:
    for name, starts in STARTS.items():
        for start in starts:
            assert told(start) == name and told(start + b"x" * 20) == name
            assert told(b"x" + start + b"x" * 20) is None, name
    assert all(told(data) is None for data in (b"P0\n", b"P7\n", b"P6x", b"P6", b"Q6\n"))


def test_what_is_of_no_known_format_is_described() -> None:
    assert unknown(b"", "picture") == "the file is empty"
    assert unknown(b"%!PS-Adobe", "picture") == "PostScript is not decoded"
    assert unknown(b"\0\0\0\x18ftypheicmif1", "clip") == "no decoder for a clip of brand 'heic'"
    assert unknown(b"<html><body>", "sound") == "not a sound of a known format (it starts with 3c 68 74 6d 6c 3e 3c 62)"


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def frame(height: int = 300, width: int = 500, components: int = 3, marker: int = 0xC0, precision: int = 8) -> bytes:
    return segment(marker, struct.pack(">BHHB", precision, height, width, components) + bytes(3 * components))


SCAN = b"\xff\xda\0\x02pixels\xff\xd9"


def jpeg(*segments: bytes, scan: bytes = SCAN) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + scan


def test_a_jpeg_frame_is_found_behind_any_segments() -> None:
    notes = segment(0xE0, b"JFIF\0") + segment(0xFE, b"")
    scan = 2 + len(notes) + len(frame())
    assert jpeg_frame(jpeg(notes, frame())) == (300, 500, 3, scan)
    assert jpeg_frame(b"12345" + jpeg(notes, frame()), 5) == (300, 500, 3, scan + 5)
    for marker, found in ((0xC0, True), (0xC1, True), (0xC2, True), (0xC3, False), (0xC5, False), (0xCF, False)):
        assert (jpeg_frame(jpeg(frame(marker=marker))) is not None) is found
    assert jpeg_frame(jpeg(frame(precision=12))) is None and jpeg_frame(jpeg()) is None


def test_a_jpeg_has_one_frame_and_only_segments_with_a_length() -> None:
    bare = {0x00, 0x01, 0xFF, *range(0xD0, 0xDA)}
    frames = {marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC)}
    for marker in range(256):
        data = jpeg(frame(), segment(marker, b"\0" * 9))
        if marker == 0xDA:
            assert jpeg_frame(data) == (300, 500, 3, 2 + len(frame()))
        else:
            assert (jpeg_frame(data) is None) is (marker in bare | frames), hex(marker)
    assert jpeg_frame(jpeg(frame(), b"junk")) is None


def test_a_jpeg_that_is_cut_short_has_no_frame() -> None:
    data = jpeg(segment(0xE0, b"JFIF\0"), frame())
    scan = len(data) - len(SCAN)
    assert all(jpeg_frame(data[:length]) is None for length in range(scan + 4))
    assert jpeg_frame(data[: scan + 4]) == (300, 500, 3, scan)
    shortest = struct.pack(">BHHB", 8, 5, 6, 1)
    assert jpeg_frame(jpeg(segment(0xC0, shortest + b"x"))) is not None
    assert jpeg_frame(jpeg(segment(0xC0, shortest))) is None, "no room for a component"


def test_dali_gets_whole_jpegs_of_one_or_three_components_that_no_note_turns() -> None:
    assert image_header(jpeg(frame())) == ImageHeader("JPEG", 300, 500, dali=True, alpha=False, batch=True)
    for components in range(1, 5):
        header = image_header(jpeg(frame(components=components)))
        assert header is not None and header.dali is (components in (1, 3))
    end = segment(0xE1, b"\xff\xd9")
    note = segment(0xE1, b"<tiff:Orientation>6")
    for data, dali in (
        (jpeg(frame(), scan=SCAN[:-2]), False),
        (jpeg(end, frame(), scan=SCAN[:-2]), False),
        (jpeg(note, frame()), False),
        (jpeg(frame()) + note, True),
    ):
        header = image_header(data)
        assert header is not None and header.dali is dali
    assert image_header(jpeg()) is None and image_header(b"GIF89a") is None


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    height: int = 3,
    width: int = 5,
    depth: int = 8,
    colour: int = 2,
    interlaced: int = 0,
    *,
    between: bytes = b"",
    rows: bytes | None = None,
    pixels: bytes | None = None,
) -> bytes:
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row_bytes = -(-width * depth * samples // 8)
    rows = b"".join(bytes([row % 5]) + b"\x99" * row_bytes for row in range(height)) if rows is None else rows
    pixels = zlib.compress(rows) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    parts = chunk(b"IDAT", pixels[:4]) + chunk(b"IDAT", pixels[4:])
    return b"\x89PNG\r\n\x1a\n" + head + between + parts + chunk(b"IEND", b"")


def header_of(data: bytes) -> ImageHeader:
    header = image_header(data)
    assert header is not None
    return header


@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("width", [1, 5, 8, 9])
def test_plain_pngs_go_to_dali_together(colour: int, depth: int, width: int) -> None:
    plain = depth <= 8 and colour != 4
    expected = ImageHeader("PNG", 3, width, dali=plain, alpha=colour == 6, batch=plain)
    assert header_of(png(3, width, depth, colour)) == expected


def test_a_png_with_what_dali_ignores_is_left_to_pillow() -> None:
    for kind, body, dali in (
        (b"tRNS", b"\0\0", False),
        (b"eXIf", b"II*\0", False),
        (b"acTL", bytes(8), False),
        (b"gAMA", b"\0\0\0\1", True),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0", False),
        (b"zTXt", b"Raw profile type exif\0\0", False),
        (b"zTXt", b"Raw profile type APP1\0\0", False),
        (b"tEXt", b"Comment\0XML:com.adobe.xmp\0", True),
    ):
        header = header_of(png(between=chunk(kind, body)))
        assert header.dali is header.batch is dali, kind


def test_a_png_with_a_broken_chunk_is_left_to_pillow() -> None:
    good = png(between=chunk(b"gAMA", b"\0\0\0\1"))
    assert header_of(good).dali and header_of(good + b"tail").dali
    for length in range(29, len(good)):
        assert not header_of(good[:length]).dali
    for length in range(12, 29):
        with pytest.raises(MediaError):
            image_header(good[:length])
    for place in range(33, len(good)):  # behind the header, whose size a broken bit may make absurd
        broken = bytearray(good)
        broken[place] ^= 1
        assert not header_of(bytes(broken)).dali, place
    with pytest.raises(MediaError, match="without a header chunk"):
        image_header(good.replace(b"IHDR", b"IHDX"))
    with pytest.raises(MediaError, match="cut short"):
        image_header(good[:20])


def test_pngs_share_a_call_only_where_their_pixels_surely_unpack() -> None:
    rows = bytes([4]) + b"abc" * 5 + bytes([0]) + b"abc" * 5 + bytes([1]) + b"\xff" * 15
    packed = zlib.compress(rows)
    for data, batch in (
        (png(rows=rows), True),
        (png(rows=rows[:-1]), False),
        (png(rows=rows + b"x"), False),
        (png(rows=bytes([5]) + rows[1:]), False),
        (png(rows=rows[:16] + bytes([5]) + rows[17:]), False),
        (png(pixels=packed[:-4]), False),
        (png(pixels=b"junk" + packed), False),
        (png(interlaced=1), False),
        (png(256, 256, colour=0), True),
        (png(1, 2**16, colour=0), True),
        (png(1, 2**16 + 1, colour=0), False),
    ):
        header = header_of(data)
        assert header.dali and header.batch is batch
    assert header_of(png(rows=bytes(1000), height=10, width=30, colour=6)).batch is False


def test_empty_and_huge_claims_are_refused() -> None:
    for sides in ((0, 5), (5, 0)):
        with pytest.raises(MediaError, match="the header claims"):
            image_header(png(*sides, pixels=zlib.compress(b"")))
    with pytest.raises(MediaError, match="more than"):
        image_header(png(1, MAX_IMAGE_PIXELS + 1, pixels=zlib.compress(b"")))


def test_an_animation_is_announced_ahead_of_the_pixels() -> None:
    control = chunk(b"acTL", bytes(8))
    assert is_animated_png(png(between=chunk(b"gAMA", b"\0\0\0\1") + control))
    assert not is_animated_png(png()) and not is_animated_png(png() + control)
    assert not is_animated_png(png()[:-12] + control)
    head = png()[:33]
    assert is_animated_png(head + control[:8]) and not is_animated_png(head + control[:7])


# WebP


def webp(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def lossy(height: int, width: int, *, first: int = 0, start: bytes = b"\x9d\x01\x2a") -> bytes:
    return webp(b"VP8 ", bytes([first, 0, 0]) + start + struct.pack("<HH", width, height) + b"pixels")


def lossless(height: int, width: int, *, alpha: int = 0, version: int = 0, signature: int = 0x2F) -> bytes:
    bits = width - 1 | (height - 1) << 14 | alpha << 28 | version << 29
    return webp(b"VP8L", struct.pack("<BI", signature, bits) + b"pixels!")


def test_the_three_kinds_of_webp_say_their_size() -> None:
    extended = webp(b"VP8X", bytes(4) + (700 - 1).to_bytes(3, "little") + (70_000 - 1).to_bytes(3, "little"))
    assert header_of(extended) == ImageHeader("WEBP", 70_000, 700, dali=False)
    assert header_of(lossy(300, 500)) == ImageHeader("WEBP", 300, 500, dali=True)
    scaled = lossy(300 | 0x4000, 0x3FFF | 0x8000)  # the upper two bits ask for scaling
    assert header_of(scaled) == ImageHeader("WEBP", 300, 0x3FFF, dali=True)
    assert header_of(lossless(3000, 16384, alpha=1)) == ImageHeader("WEBP", 3000, 16384, dali=True, alpha=True)
    assert header_of(lossless(16384, 1)) == ImageHeader("WEBP", 16384, 1, dali=True, alpha=False)
    with pytest.raises(MediaError, match="without a picture chunk"):
        image_header(webp(b"ALPH", bytes(30)))


def test_dali_gets_only_sound_webp() -> None:
    assert header_of(lossy(3, 5, first=2)).dali and not header_of(lossy(3, 5, first=1)).dali
    assert not header_of(lossy(3, 5, start=b"\x9d\x01\x2b")).dali
    assert not header_of(lossless(3, 5, signature=0x2E)).dali
    assert not any(header_of(lossless(3, 5, version=version)).dali for version in (1, 2, 4))
    for data in (lossy(3, 5), lossless(3, 5)):
        for length in range(30, len(data)):
            assert not header_of(data[:length]).dali
        assert not header_of(data + b"xx").dali
        inner = bytearray(data)
        inner[16] += 1
        assert not header_of(bytes(inner)).dali, "a chunk longer than the file"
        inner[16] -= 2
        assert header_of(bytes(inner)).dali
    for length in range(12, 30):
        with pytest.raises(MediaError):
            image_header(lossy(3, 5)[:length])


# Icons and clips


def test_every_picture_inside_an_icon_is_checked() -> None:
    small, large = struct.pack(">II", 8, 8), struct.pack(">II", MAX_IMAGE_PIXELS + 1, 1)
    for magic, gap in ((b"IHDR", b""), (b"ihdr", b""), (b"\xff\x4f\xff\x51", b"size")):
        check_nested(magic + gap + small)
        for data in (
            magic + gap + large,
            magic + gap + small + magic + gap + large,
            b"icns" + magic + gap + large + b"tail",
        ):
            with pytest.raises(MediaError, match="more than"):
                check_nested(data)
        for length in range(len(magic + gap + large)):
            check_nested((b"icns" + magic + gap + large)[: 4 + length])


UPRIGHT = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
TURNED = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)


def track(version: int, matrix: bytes) -> bytes:
    """A track header (ISO/IEC 14496-12, 8.3.2) up to the picture's size: its times are longer in version 1."""
    times = 5 * 4 if version == 0 else 3 * 8 + 2 * 4
    return b"tkhd" + bytes([version, 0, 0, 3]) + b"t" * times + bytes(8 + 8) + matrix + bytes(8)


@pytest.mark.parametrize("version", [0, 1])
def test_a_matrix_that_is_not_the_identity_turns_a_clip(version: int) -> None:
    upright, turned = track(version, UPRIGHT), track(version, TURNED)
    for data, expected in (
        (upright, False),
        (turned, True),
        (b"mvhd" + upright + upright, False),
        (b"mvhd" + upright + turned, True),
        (turned + upright, True),
        (b"no track", False),
        (upright + b"tkhd\0", False),
        (upright + b"tkhd\0\0", True),
    ):
        assert is_turned(data, "mov") is expected
        assert not is_turned(data, "matroska") and not is_turned(data, "avi")


def test_a_projection_ahead_of_the_first_cluster_may_turn_a_clip() -> None:
    roll, cluster = b"\x76\x75", b"\x1f\x43\xb6\x75"
    assert is_turned(b"head" + roll + cluster, "matroska") and not is_turned(b"head" + roll + cluster, "avi")
    assert not is_turned(b"head" + cluster + roll, "matroska") and not is_turned(b"head" + roll + b"tail", "matroska")
