"""What a file is, told by its first bytes and never by its name, and what its header claims.

Decoders are only given formats that are named here, each by its own parser: FFmpeg's guessing would also accept
playlists that open other files, Pillow's would call Ghostscript. Headers are read before anything is allocated, so
that a decompression bomb is refused by its claim.
"""

import struct
import zlib
from dataclasses import dataclass

from m5ds.data.decode.media import MAX_IMAGE_PIXELS
from m5ds.data.decode.probes.tga import is_tga
from m5ds.inputs.media import MediaError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_IMAGE_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, PNG_SIGNATURE, "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"8BPS", "PSD"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"\x01\xda", "SGI"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\x0a\x05\x01", "PCX"),
    (0, b"\x0a\x03\x01", "PCX"),
    (0, b"\x0a\x02\x01", "PCX"),
    (0, b"icns", "ICNS"),
    (0, b"BM", "BMP"),
)
"""(offset, bytes, Pillow's name of the format); HEIC has no decoder here, EPS needs Ghostscript, TGA has no magic."""

_PNG_NOTES = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
"""Text chunks in which Pillow looks for an orientation."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 6: 4}
_PNG_BATCH_PIXELS = 2**16
"""Larger PNGs are decoded one by one: inflating them twice costs more than a call of their own."""

_IDENTITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def image_format(data: bytes) -> str:
    """Pillow's name of the picture's format; MediaError for an unknown one."""
    for offset, magic, name in _IMAGE_MAGIC:
        if data.startswith(magic, offset):
            return name
    if len(data) > 2 and data[0] == 0x50 and data[1] in b"123456" and chr(data[2]).isspace():
        return "PPM"
    if is_tga(data):
        return "TGA"
    raise MediaError(unknown(data, "picture"))


def unknown(data: bytes, kind: str) -> str:
    """Why a file is of no format that is named here."""
    if not data:
        return "the file is empty"
    if data.startswith(b"%!PS"):
        return "PostScript is not decoded"
    if data[4:8] == b"ftyp":
        return f"no decoder for a {kind} of brand {data[8:12].decode('latin-1')!r}"
    return f"not a {kind} of a known format (it starts with {data[:8].hex(' ')})"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a picture's header claims."""

    format: str
    height: int
    width: int
    dali: bool
    """Whether DALI reads this flavour as it should be read; else Pillow does."""
    alpha: bool = False
    """Whether it has an alpha channel that DALI returns as a fourth channel."""
    batch: bool = False
    """Whether it may share a DALI call: two failures in one call can end the process (docs/decoding.md)."""


def check_pixels(height: int, width: int, limit: int = MAX_IMAGE_PIXELS) -> None:
    """MediaError where the claimed size is empty or past the limit."""
    if height < 1 or width < 1:
        raise MediaError(f"the header claims {width} x {height} pixels")
    if height * width > limit:
        raise MediaError(f"the header claims {width} x {height} pixels, more than {limit}")


def image_header(data: bytes) -> ImageHeader | None:
    """The header of a JPEG, PNG or WebP; None where Pillow is to read it.

    `dali` is set only where the structure is sound, so that DALI seldom meets a damaged file. Raises MediaError for
    unknown formats, damaged headers and sizes past MAX_IMAGE_PIXELS.
    """
    name = image_format(data)
    reader = {"JPEG": _jpeg_header, "PNG": _png_header, "WEBP": _webp_header}.get(name)
    if reader is None:
        return None
    try:
        header = reader(data)
    except (struct.error, IndexError) as error:
        raise MediaError(f"{name} header is cut short") from error
    if header is not None:
        check_pixels(header.height, header.width)
    return header


def check_nested(data: bytes) -> None:
    """MediaError where a PNG or JPEG 2000 inside an icon claims too many pixels: Pillow believes it, not the icon."""
    for magic, skip in ((b"IHDR", 4), (b"ihdr", 4), (b"\xff\x4f\xff\x51", 8)):
        place = data.find(magic)
        while 0 <= place <= len(data) - skip - 8:
            one, other = struct.unpack_from(">II", data, place + skip)
            check_pixels(one, other)
            place = data.find(magic, place + 1)


def is_animated_png(data: bytes) -> bool:
    """Whether a PNG announces an animation ahead of its pixels."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (b"acTL", b"IDAT"):
            return kind == b"acTL"
        place += 12 + length
    return False


def jpeg_frame(data: bytes, start: int = 0) -> tuple[int, int, int, int] | None:
    """(height, width, components, offset of the scan) of a JPEG; None where its segments do not lead to a scan."""
    place, end, frame = start + 2, len(data), None
    while place + 4 <= end:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xDA:
            return None if frame is None else (*frame, place)
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD9 or marker == 0:
            return None
        length = struct.unpack_from(">H", data, place + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame is not None or marker > 0xC2 or length < 9 or place + 10 > end:
                return None
            precision, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            if precision != 8:
                return None
            frame = (height, width, components)
        place += 2 + length
    return None


def _jpeg_header(data: bytes) -> ImageHeader | None:
    frame = jpeg_frame(data)
    if frame is None:
        return None  # Pillow skips junk between segments
    height, width, components, scan = frame
    sound = components in (1, 3) and data.rfind(b"\xff\xd9") > scan
    sound = sound and data.find(b"tiff:Orientation", 0, scan) < 0  # DALI turns by EXIF alone
    return ImageHeader("JPEG", height, width, dali=sound, batch=True)


def _png_header(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise MediaError("PNG without a header chunk")
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    plain, place, kind, pixels = depth <= 8 and colour in (0, 2, 3, 6), 8, b"", []
    while plain and kind != b"IEND" and place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        # DALI ignores transparent colours and orientation, and takes the default picture of an animation.
        plain = kind not in (b"tRNS", b"eXIf", b"acTL") and end + 4 <= len(data)
        plain = plain and not data.startswith(_PNG_NOTES, place + 8)
        if plain:
            plain = zlib.crc32(memoryview(data)[place + 4 : end]) == struct.unpack_from(">I", data, end)[0]
            if kind == b"IDAT":
                pixels.append(data[place + 8 : end])
            place = end + 4
    sound = plain and kind == b"IEND"
    small = sound and not interlaced and 0 < height * width <= _PNG_BATCH_PIXELS
    batch = small and _png_inflates(b"".join(pixels), height, (width * depth * _PNG_CHANNELS[colour] + 7) // 8)
    return ImageHeader("PNG", height, width, dali=sound, alpha=colour == 6, batch=batch)


def _png_inflates(pixels: bytes, height: int, row_bytes: int) -> bool:
    """Whether the pixel data unpack to exactly `height` rows, each behind a known filter number."""
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(pixels, height * (row_bytes + 1) + 1)
    except zlib.error:
        return False
    return stream.eof and len(rows) == height * (row_bytes + 1) and max(rows[:: row_bytes + 1]) <= 4


def _webp_header(data: bytes) -> ImageHeader:
    kind = data[12:16]
    whole = struct.unpack_from("<I", data, 4)[0] + 8 == len(data) and struct.unpack_from("<I", data, 16)[0] + 20 <= len(
        data
    )
    if kind == b"VP8X":  # animation, alpha of lossy pictures, orientation
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return ImageHeader("WEBP", height, width, dali=False)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        height, width = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        sound = whole and signature == 0x2F and bits >> 29 == 0
        return ImageHeader("WEBP", height, width, dali=sound, alpha=bool(bits >> 28 & 1))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        sound = whole and data[23:26] == b"\x9d\x01\x2a" and not data[20] & 1
        return ImageHeader("WEBP", height & 0x3FFF, width & 0x3FFF, dali=sound)
    raise MediaError("WebP without a picture chunk")


def is_turned(data: bytes, container: str) -> bool:
    """Whether a clip's container may ask for its pictures to be rotated, which DALI does not do."""
    if container == "mov":
        place = data.find(b"tkhd")
        while 0 <= place < len(data) - 5:
            matrix = place + (44 if data[place + 4] == 0 else 56)
            if data[matrix : matrix + 36] != _IDENTITY_MATRIX:
                return True
            place = data.find(b"tkhd", place + 4)
        return False
    # Matroska's ProjectionPoseRoll, ahead of the first cluster.
    return container == "matroska" and b"\x76\x75" in data[: max(data.find(b"\x1f\x43\xb6\x75"), 0)]
