"""Small catalogues with stand-in media bytes, for tests of everything between a catalogue and its shards."""

import json
from pathlib import Path
from typing import Any


def record(number: int, **changes: Any) -> dict[str, Any]:
    """A record with an image and, for every third product, a clip; groups of two; categories with a long tail."""
    category = ["Home", "Lamps"] if number % 4 else ["Home", f"Rare {number % 8}"]
    base = {
        "id": f"shop/{number}",
        "category": category,
        "title": f"Lamp {number} 台灯",
        "description": "",
        "attributes": {"Watt": number, "Colour": "red"},
        "images": [f"media/{number}.jpg"],
        "videos": [f"media/{number}.mp4"] if number % 3 == 0 else [],
        "audios": [],
        "i18n": {"zh": {"title": f"台灯 {number}", "description": "好"}},
        "share_group": number // 2,
    }
    return {**base, **changes}


def write_catalogue(folder: Path, records: list[dict[str, Any]]) -> Path:
    """items.jsonl and every listed media file, with bytes that depend on its name alone."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    for item in records:
        for field in ("images", "videos", "audios"):
            for path in item.get(field) or []:
                (folder / path).write_bytes(f"bytes of {path}".encode() * 40)
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records), encoding="utf-8")
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path relative to the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
