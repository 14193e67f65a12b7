"""Pictures to square float tensors: DALI for the common flavours, Pillow for the rest and for what DALI refuses.

Shape letters: K pictures, H x W pixels, S the square's side.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.data.decode.media import MAX_IMAGE_PIXELS, crop_box, reason_for
from m5ds.data.decode.probes.media import ImageHeader, check_nested, check_pixels, image_format, image_header
from m5ds.data.decode.probes.tga import readable_tga
from m5ds.data.decode.resize import cut_and_resize
from m5ds.inputs.media import Crop, MediaError, MediaItem

# A damaged file is recorded once, with its reason; Pillow would also write to the terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")

_WIDE_MODES = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "F": 1.0}
"""Pillow's modes with more than 8 bits, which `convert` would clip; and the value of white in them."""

_ORIENTATION = 274
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


def decode_images(
    dali: DaliRuntime, items: Sequence[MediaItem], size: int, crops: Sequence[Crop | None]
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """[S, S, 3] in 0..255 for every picture that decodes, and the reason for every other, by index."""
    values: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    headers: dict[int, ImageHeader | None] = {}
    for index, item in enumerate(items):
        try:
            headers[index] = image_header(item.data)
        except MediaError as error:
            reasons[index] = reason_for(error)

    def keep(indices: Sequence[int], pictures: Sequence[Tensor]) -> None:
        boxes = [
            crop_box(picture.shape[0], picture.shape[1], crops[index])
            for index, picture in zip(indices, pictures, strict=True)
        ]
        values.update(zip(indices, cut_and_resize(pictures, boxes, size, dali.device), strict=True))

    by_dali = {index: header for index, header in headers.items() if header is not None and header.dali}
    for alpha in (False, True):
        alike = {index: header for index, header in by_dali.items() if header.alpha is alpha}
        groups = [*_bounded({index: header for index, header in alike.items() if header.batch})]
        groups += [[index] for index, header in alike.items() if not header.batch]
        for indices in groups:
            _by_dali(dali, items, indices, alpha, keep)
    for index in headers:
        if index in values:
            continue
        try:
            keep([index], [torch.from_numpy(_by_pillow(items[index].data))])
        except Exception as error:  # Pillow's plug-ins raise anything, struct.error and SyntaxError among them
            reasons[index] = reason_for(error)
    return values, reasons


def _bounded(headers: dict[int, ImageHeader]) -> Iterator[list[int]]:
    """The pictures in groups of at most MAX_IMAGE_PIXELS, so that memory does not grow with the batch."""
    group: list[int] = []
    pixels = 0
    for index, header in headers.items():
        count = header.height * header.width
        if pixels + count > MAX_IMAGE_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(index)
        pixels += count
    if group:
        yield group


def _by_dali(dali: DaliRuntime, items: Sequence[MediaItem], indices: list[int], alpha: bool, keep: Any) -> None:
    """Decode together; where one is damaged, one by one. What fails alone is left to Pillow."""
    try:
        pictures = dali.images([items[index].data for index in indices], alpha)
    except Exception:  # DALI raises RuntimeError, ValueError and its own types
        for index in indices if len(indices) > 1 else []:
            _by_dali(dali, items, [index], alpha, keep)
        return
    keep(indices, [_on_white(picture) for picture in pictures] if alpha else pictures)


def _on_white(picture: Tensor) -> Tensor:
    """uint8 [H, W, 4] to [H, W, 3]: product pictures with transparency are cut out to stand on a white page."""
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:].to(torch.float32) / 255
    return (picture[..., :3] * alpha + 255 * (1 - alpha)).round_().to(torch.uint8)


def _by_pillow(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] of the first frame, turned as EXIF says, on white."""
    name = image_format(data)
    if name in ("ICNS", "ICO"):
        check_nested(data)
    elif name == "TGA":
        data = readable_tga(data)
    try:
        opened = Image.open(io.BytesIO(data), formats=[name])
    except UnidentifiedImageError as error:  # its message is an address in memory
        raise MediaError(f"damaged {name} header") from error
    with opened as picture:
        check_pixels(picture.height, picture.width)
        turned = ImageOps.exif_transpose(_told_orientation(picture))
        if turned.mode in _WIDE_MODES:
            return _narrowed(np.asarray(turned, np.float32), _WIDE_MODES[turned.mode])
        if turned.has_transparency_data:
            page = Image.new("RGBA", turned.size, "white")
            page.alpha_composite(turned.convert("RGBA"))
            turned = page
        return np.array(turned.convert("RGB"))


def _told_orientation(picture: Image.Image) -> Image.Image:
    """The picture with the orientation of its XMP packet where EXIF has none, also in quotes that Pillow overlooks."""
    picture.load()  # a PNG may hold its notes behind its pixels
    exif = picture.getexif()
    found = _XMP_ORIENTATION.search(xmp) if isinstance(xmp := picture.info.get("xmp"), bytes) else None
    if found and _ORIENTATION not in exif:
        exif[_ORIENTATION] = int(found[1])
    return picture


def _narrowed(picture: np.ndarray, white: float) -> np.ndarray:
    """uint8 [H, W, 3] from one wide channel. Where nothing says what white is, the brightest pixel is."""
    picture = np.nan_to_num(picture, posinf=0.0, neginf=0.0)
    white = max(white, float(picture.max()))
    grey = np.rint(picture.clip(0) * (255 / white)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
