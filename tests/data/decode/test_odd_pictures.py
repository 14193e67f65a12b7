"""Pictures that are rare but good: TGA without a magic number, icons, orientations that only XMP tells."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from ffmpeg_cases import ffmpeg
from media_samples import damaged, image, item, picture_HWC
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from m5ds.data.decode.decoder import PIXEL_MEAN, PIXEL_STD, Decoder
from m5ds.data.decode.media import MAX_IMAGE_PIXELS
from m5ds.data.decode.probes.media import image_format, image_header
from m5ds.data.decode.probes.tga import is_tga
from m5ds.inputs import ImagePatches
from m5ds.inputs.media import MediaError

SPEC = ImagePatches(size=32, patch=8)
XMP = "<x:xmpmeta><rdf:RDF><rdf:Description {}></rdf:Description></rdf:RDF></x:xmpmeta>"
NOTES = ('tiff:Orientation="6"', "tiff:Orientation='6'", "><tiff:Orientation>6</tiff:Orientation")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder("cpu", 1)


def pixels_HWC(decoder: Decoder, data: bytes) -> np.ndarray:
    decoded = decoder.images([item(data)], SPEC, [None])
    assert decoded.kept == [0], decoded.failures
    return ((decoded.values[0] * PIXEL_STD + PIXEL_MEAN) * 255).permute(1, 2, 0).numpy()


def tga(
    kind: int, depth: int, body: bytes, *, width: int = 32, height: int = 32, flags: int = 0x20, **fields: object
) -> bytes:
    colours = bytes(fields.get("colours", b""))
    entry = int(fields.get("entry", 24))
    count = len(colours) // max((entry + 7) // 8, 1)
    head = struct.pack(
        "<BBBHHBHHHHBB", 0, bool(colours), kind, 0, count, entry if colours else 0, 0, 0, width, height, depth, flags
    )
    return head + colours + body


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
@pytest.mark.parametrize("footer", [False, True])
def test_tga_of_pillow_is_read_with_and_without_footer(
    decoder: Decoder, mode: str, compressed: bool, footer: bool
) -> None:
    source = Image.fromarray(picture_HWC(32, 32))
    source = source.quantize(64) if mode == "P" else source.convert(mode)
    file = io.BytesIO()
    source.save(file, "TGA", **({"compression": "tga_rle"} if compressed else {}))
    data = file.getvalue() if footer else file.getvalue()[:-26]
    assert data.endswith(b"TRUEVISION-XFILE.\0") is footer and image_format(data) == "TGA"
    np.testing.assert_allclose(pixels_HWC(decoder, data), np.asarray(source.convert("RGB"), np.float32), atol=1e-3)


@pytest.mark.parametrize("rle", [0, 1])
@pytest.mark.parametrize("pixel_format", ["gray", "bgr24", "rgb555le", "bgra"])
def test_tga_of_ffmpeg_is_what_ffmpeg_reads(decoder: Decoder, tmp_path: Path, pixel_format: str, rle: int) -> None:
    Image.fromarray(picture_HWC(32, 32)).save(tmp_path / "in.png")
    ffmpeg("-i", tmp_path / "in.png", "-pix_fmt", pixel_format, "-rle", rle, tmp_path / "out.tga")
    raw = ffmpeg("-i", tmp_path / "out.tga", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    expected_HWC = np.frombuffer(raw, np.uint8).reshape(32, 32, 3).astype(np.float32)
    data = (tmp_path / "out.tga").read_bytes()
    for one in (data, data.removesuffix(data[-26:])):
        assert np.abs(pixels_HWC(decoder, one) - expected_HWC).max() <= 8  # 5 bits are widened by two rules


@pytest.mark.parametrize("depth", [15, 16])
def test_tga_of_fifteen_bits_is_read(decoder: Decoder, depth: int) -> None:
    five = np.arange(1024, dtype=np.uint16).reshape(32, 32) % 32
    values = five << 10 | (31 - five) << 5 | 7
    made = pixels_HWC(decoder, tga(2, depth, values.astype("<u2").tobytes()))
    expected = np.stack([five, 31 - five, np.full_like(five, 7)], axis=2) * (255 / 31)
    assert np.abs(made - expected).max() < 5


GREY = bytes(range(256)) * 4
MAP = bytes(range(192)) * 4


def test_a_tga_header_must_make_sense_in_every_field() -> None:
    good = tga(3, 8, GREY)
    assert is_tga(good) and not is_tga(good[:-1]) and is_tga(good + b"x") and not is_tga(good[:17])
    for place, value in (
        (1, 2),
        (2, 0),
        (2, 4),
        (2, 19),
        (3, 1),
        (5, 1),
        (7, 9),
        (12, 0),
        (14, 0),
        (16, 7),
        (17, 0x60),
        (17, 0x23),
    ):
        changed = bytearray(good)
        changed[place] = value
        assert not is_tga(bytes(changed)), (place, value)
    mapped = tga(1, 8, GREY, colours=MAP)
    assert is_tga(mapped) and not is_tga(mapped[:-1])
    assert not is_tga(tga(1, 8, GREY)) and not is_tga(tga(1, 8, GREY, colours=MAP[:4], entry=8))
    changed = bytearray(mapped)
    changed[3:5] = b"\xff\xff"
    assert not is_tga(bytes(changed))
    runs = b"\xff\x07" * 8
    assert is_tga(tga(11, 8, runs)) and not is_tga(tga(11, 8, runs[:-1])) and not is_tga(tga(11, 8, runs[:-2]))
    assert is_tga(tga(11, 8, b"\x7f" + bytes(128) + runs[2:])) and not is_tga(
        tga(11, 8, runs[2:] + b"\x7f" + bytes(127))
    )


def test_damaged_tgas_and_icons_are_decoded_or_recorded(decoder: Decoder) -> None:
    rng = np.random.default_rng(3)
    sources = [
        tga(3, 8, GREY),
        tga(1, 8, GREY, colours=MAP),
        tga(11, 8, b"\xff\x07" * 8),
        image("ICNS", picture_HWC(32, 32)),
    ]
    items = [item(damaged(sources[n % 4], rng)) for n in range(80)]
    decoded = decoder.images(items, SPEC, [None] * len(items))
    assert len(decoded.kept) + len(decoded.failures) == 80 and torch.isfinite(decoded.values).all()


def test_icons_are_read_at_their_largest(decoder: Decoder) -> None:
    source = Image.fromarray(picture_HWC(32, 32))
    made = pixels_HWC(decoder, image("ICNS", picture_HWC(32, 32)))
    large = source.resize((1024, 1024)).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(made - np.asarray(large, np.float32)).mean() < 3


def test_a_bomb_inside_an_icon_is_refused_by_its_claim(decoder: Decoder) -> None:
    """Pillow believes the picture inside, whatever size the icon has."""
    side = int(MAX_IMAGE_PIXELS**0.5) + 1
    picture = bytearray(image("PNG"))
    picture[16:24] = struct.pack(">II", side, side)
    icon = (
        b"icns" + struct.pack(">I", len(picture) + 16) + b"ic10" + struct.pack(">I", len(picture) + 8) + bytes(picture)
    )
    decoded = decoder.images([item(icon)], SPEC, [None])
    assert "more than" in decoded.failures[0].reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "note", ['tiff:Orientation="6"', "tiff:Orientation='6'", "><tiff:Orientation>6</tiff:Orientation"]
)
def test_orientation_of_xmp_is_applied_where_exif_has_none(decoder: Decoder, kind: str, note: str) -> None:
    options: dict[str, object] = {"xmp": XMP.format(note).encode()}
    if kind == "PNG":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.format(note))
        options = {"pnginfo": text}
    upright = pixels_HWC(decoder, image("PNG", np.rot90(picture_HWC(32, 48), -1)))
    turned = pixels_HWC(decoder, image(kind, picture_HWC(32, 48), **options))
    assert np.abs(turned - upright).mean() < 12
    exif = Image.Exif()
    exif[274] = 1
    told = pixels_HWC(decoder, image(kind, picture_HWC(32, 48), exif=exif, **options))
    plain = pixels_HWC(decoder, image(kind, picture_HWC(32, 48)))
    assert np.abs(told - plain).mean() < 12, "EXIF wins"


def test_formats_are_told_by_content() -> None:
    assert image_format(tga(3, 8, GREY)) == "TGA" and image_format(image("ICNS", picture_HWC(32, 32))) == "ICNS"
    header = image_header(image("JPEG", xmp=XMP.format('tiff:Orientation="6"').encode()))
    assert header is not None and not header.dali
    with pytest.raises(MediaError, match="known format"):
        image_format(b"\0" * 100)
