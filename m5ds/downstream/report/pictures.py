"""Thumbnails and titles of some products out of their shards, for the report's retrieval examples."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from m5ds.data.shards.reader import ShardReader

SIDE = 128


@dataclass(frozen=True)
class Shown:
    """A product as the report shows it; `picture` is a data URL or ""."""

    title: str
    picture: str


def find_products(shards: str, split: str, wanted: Iterable[str]) -> dict[str, Shown]:
    """id -> title and thumbnail of the wanted products; those that are not in the split are left out."""
    names = set(wanted)
    reader = ShardReader(shards, split)
    found = {}
    for shard in range(len(reader.shard_sizes)):
        ids = reader.index(shard).table["id"].to_pylist()
        for index, name in enumerate(ids):
            if name in names:
                product = reader.read(shard, index)
                files = product.media.get("image", [])
                picture = thumbnail(files[0].data) if files else ""
                found[name] = Shown(title=product.title[:60] or name, picture=picture)
    reader.close()
    return found


def thumbnail(data: bytes) -> str:
    """A JPEG data URL at most SIDE pixels wide and high; "" for what Pillow cannot read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
