"""A small catalogue with real encoded media whose modalities share latent factors, so that learning can be seen.

Shape of the output: docs/catalogue.md. Every product has a `Look` (colour, ground, shape, texture, size, direction:
18,432 combinations) that its pictures, clip, sound, title and attribute table all show (docs/data.md says how).
Proportions of incomplete products follow the paper (PAPER.md section 2.1): video and sound are missing together, 1.3 %
have no picture, about 5 % have one modality only.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from m5ds.data.catalogue import synthetic_media as media
from m5ds.data.catalogue.synthetic_media import Look

PATTERNS: dict[tuple[str, ...], float] = {
    ("image", "text", "table", "video", "audio"): 0.800,
    ("image", "text", "table"): 0.134,
    ("image",): 0.043,
    ("text", "table", "video", "audio"): 0.007,
    ("text",): 0.005,
    ("image", "text", "table", "video"): 0.005,
    ("image", "text"): 0.005,
    ("text", "table"): 0.001,
}
"""Share of products with each set of modalities."""
NOISY_SHARE = 0.02
"""Products whose title speaks of another item."""
DAMAGED_SHARE = 0.004
"""Pictures, clips and sounds that are damaged: this share of each, at least one where there are ten or more."""
VARIANT_SHARE = 0.10
"""Products that are a variant (another size) of the product before them: one share_group, one shared picture."""
SECOND_PICTURE_SHARE = 0.10
CHINESE_SHARE = 0.40

_WORDS = {
    "en": {
        "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
        "ground": ("white", "black", "grey", "brown", "mint", "navy"),
        "shape": ("plate", "cushion", "tent", "wrench", "bracelet", "shelf"),
        "texture": ("plain", "striped", "ribbed", "checked"),
        "size": ("mini", "small", "large", "giant"),
        "direction": ("rightward", "downward", "leftward", "upward"),
        "keys": ("Colour", "Base", "Item", "Pattern", "Size", "Facing", "Brand", "Price"),
    },
    "zh": {
        "colour": ("红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色"),
        "ground": ("白底", "黑底", "灰底", "棕底", "薄荷底", "藏青底"),
        "shape": ("盘子", "靠垫", "帐篷", "扳手", "手镯", "搁板"),
        "texture": ("纯色", "条纹", "竖纹", "格子"),
        "size": ("迷你", "小号", "大号", "特大"),
        "direction": ("朝右", "朝下", "朝左", "朝上"),
        "keys": ("颜色", "底色", "品类", "花纹", "尺寸", "朝向", "品牌", "价格"),
    },
}
_TOP_CATEGORY = ("Kitchen", "Living", "Outdoor", "Outdoor", "Fashion", "Living")
_CENTIMETRES = (8, 16, 24, 32)
# fmt: off
_BRANDS = (
    "Alder", "Brio", "Corvo", "Dune", "Elm", "Fjord", "Gale", "Haven", "Iris", "Juno", "Kestrel", "Lumo", "Maple",
    "Noor", "Opal", "Pike", "Quill", "Rove", "Sable", "Tarn", "Umber", "Vela", "Wren", "Xylo", "Yarrow", "Zephyr",
)
# fmt: on
_PHRASES = {
    "en": ("ships in two days", "gift box included", "easy to clean", "new this season", "official store"),
    "zh": ("包邮", "新款上市", "官方旗舰店", "礼盒装", "七天无理由退换"),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a product will be, before anything is drawn. `looks` has an entry a modality: shuffling sets them apart."""

    index: int
    group: int
    variant: bool
    label: Look
    looks: dict[str, Look]
    present: tuple[str, ...]
    language: str


def make_catalogue(directory: str | Path, num_products: int, seed: int, shuffle_pairs: bool = False) -> Path:
    """Write `items.jsonl` and `media/` into `directory` and return the path of `items.jsonl`.

    The same arguments give the same bytes. `shuffle_pairs` permutes the looks of every modality among products, each
    modality by itself: the marginals stay as they are and nothing can be matched (the control that must not learn).
    Raises ValueError for fewer than one product.
    """
    if num_products < 1:
        raise ValueError(f"data.quickstart_products must be at least 1, got {num_products}")
    directory = Path(directory)
    for folder in ("images", "videos", "audios"):
        (directory / "media" / folder).mkdir(parents=True, exist_ok=True)
    plans = _plan(num_products, seed, shuffle_pairs)
    damaged = _choose_damaged(plans, np.random.default_rng([seed, 1]))
    first_of_group = {plan.group: plan for plan in reversed(plans)}
    path = directory / "items.jsonl"
    with path.open("w", encoding="utf-8") as output:
        for plan in plans:
            record = _write_product(directory, plan, first_of_group[plan.group], damaged, seed)
            output.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def _plan(num_products: int, seed: int, shuffle_pairs: bool) -> list[_Plan]:
    rng = np.random.default_rng([seed, 0])
    num_leaves = media.NUM_SHAPES * media.NUM_TEXTURES
    popularity = 1.0 / np.arange(1, num_leaves + 1) ** 0.8
    # 7 and 24 are coprime: popular leaves are spread over shapes and textures.
    leaf_of_rank = np.arange(num_leaves) * 7 % num_leaves
    patterns = list(PATTERNS)
    looks: list[Look] = []
    groups: list[int] = []
    for index in range(num_products):
        rank = rng.choice(num_leaves, p=popularity / popularity.sum())
        texture, shape = divmod(int(leaf_of_rank[rank]), media.NUM_SHAPES)
        colour, ground = int(rng.integers(len(media.COLOURS))), int(rng.integers(len(media.GROUNDS)))
        size, direction = int(rng.integers(media.NUM_SIZES)), int(rng.integers(media.NUM_DIRECTIONS))
        variant = index > 0 and _happens(rng, VARIANT_SHARE)
        if variant:
            looks.append(replace(looks[-1], size=(looks[-1].size + 1) % media.NUM_SIZES))
        else:
            looks.append(Look(colour, ground, shape, texture, size, direction))
        groups.append(groups[-1] if variant else index)
    shown = {name: list(looks) for name in ("image", "text", "table", "video", "audio")}
    if shuffle_pairs:
        shuffle = np.random.default_rng([seed, 4])
        shown = {name: [looks[i] for i in shuffle.permutation(num_products)] for name in shown}
    for index in np.flatnonzero(_happens(rng, NOISY_SHARE, num_products)).tolist():
        shown["text"][index] = looks[int(rng.integers(num_products))]
    present = rng.choice(len(patterns), size=num_products, p=list(PATTERNS.values()))
    languages = np.where(_happens(rng, CHINESE_SHARE, num_products), "zh", "en")
    sizes = np.bincount(groups, minlength=num_products)
    return [
        _Plan(
            index=index,
            group=groups[index],
            variant=bool(sizes[groups[index]] > 1),
            label=looks[index],
            looks={name: shown[name][index] for name in shown},
            present=patterns[present[index]],
            language=str(languages[index]),
        )
        for index in range(num_products)
    ]


def _happens(rng: np.random.Generator, share: float, count: int | None = None) -> Any:
    """True in this share of draws: one draw, or bool [count]."""
    return rng.random(count) < share


def _choose_damaged(plans: list[_Plan], rng: np.random.Generator) -> dict[str, set[int]]:
    """Products whose first file of a modality is damaged."""
    damaged = {}
    for name in ("image", "video", "audio"):
        candidates = [plan.index for plan in plans if name in plan.present]
        count = round(DAMAGED_SHARE * len(candidates)) or int(len(candidates) >= 10)
        damaged[name] = {candidates[i] for i in rng.choice(len(candidates), size=count, replace=False)}
    return damaged


def _write_product(
    directory: Path, plan: _Plan, first_of_group: _Plan, damaged: dict[str, set[int]], seed: int
) -> dict[str, object]:
    """Draw, encode and write the product's files; returns its catalogue record."""
    rng = np.random.default_rng([seed, 2, plan.index])
    files: dict[str, list[str]] = {"image": [], "video": [], "audio": []}

    def write(name: str, file: str, content: bytes) -> None:
        if plan.index in damaged[name] and not files[name]:
            content = _damage(content, rng)
        path = f"media/{name}s/{file}"
        (directory / path).write_bytes(content)
        files[name].append(path)

    if "image" in plan.present:
        for number in range(1 + int(_happens(rng, SECOND_PICTURE_SHARE))):
            height, width = (int(side) for side in rng.integers(64, 97, 2))
            pixels_HWC = media.picture_HWC(plan.looks["image"], height, width, rng)
            as_png = _happens(rng, 0.25) and not (plan.index in damaged["image"] and number == 0)
            encoded = media.encode_png(pixels_HWC) if as_png else media.encode_jpeg(pixels_HWC)
            write("image", f"{plan.index:06d}-{number}.{'png' if as_png else 'jpg'}", encoded)
        if plan.variant:
            shared = f"group-{plan.group:06d}.jpg"
            shared_rng = np.random.default_rng([seed, 3, plan.group])
            pixels_HWC = media.picture_HWC(first_of_group.looks["image"], 80, 80, shared_rng)
            write("image", shared, media.encode_jpeg(pixels_HWC))
    if "video" in plan.present:
        codec, suffix = ("vp9", "webm") if _happens(rng, 0.35) else ("h264", "mp4")
        frames_THWC = media.clip_THWC(plan.looks["video"], 48, int(rng.integers(8, 11)), rng)
        write("video", f"{plan.index:06d}.{suffix}", media.encode_clip(frames_THWC, codec))
    if "audio" in plan.present:
        sound_T = media.sound_T(plan.looks["audio"], float(rng.uniform(1.05, 1.3)), rng)
        as_ogg = _happens(rng, 0.25)
        encoded = media.encode_ogg(sound_T) if as_ogg else media.encode_wav(sound_T)
        write("audio", f"{plan.index:06d}.{'ogg' if as_ogg else 'wav'}", encoded)
    return _record(plan, files, rng)


def _damage(content: bytes, rng: np.random.Generator) -> bytes:
    """The first two fifths of a JPEG (which decoders call truncated); noise in place of anything else."""
    return content[: len(content) * 2 // 5] if content[:2] == b"\xff\xd8" else rng.bytes(400)


def _record(plan: _Plan, files: dict[str, list[str]], rng: np.random.Generator) -> dict[str, object]:
    brand = _BRANDS[int(min(rng.zipf(1.6), len(_BRANDS))) - 1]
    price = f"{int(rng.integers(5, 200))}.{int(rng.integers(10))}0"
    phrases, first = rng.permutation(5)[:2], int(rng.integers(7))
    has_text, has_table = "text" in plan.present, "table" in plan.present
    other = "zh" if plan.language == "en" else "en"
    texture, shape = _WORDS["en"]["texture"][plan.label.texture], _WORDS["en"]["shape"][plan.label.shape]

    def text(language: str) -> dict[str, str]:
        title = _title(plan.looks["text"], language, brand, first)
        return {"title": title, "description": ", ".join(_PHRASES[language][i] for i in phrases)}

    return {
        "id": f"synthetic/{plan.index:06d}",
        "category": [_TOP_CATEGORY[plan.label.shape], shape, f"{texture} {shape}"],
        **(text(plan.language) if has_text else {"title": "", "description": ""}),
        "attributes": _attributes(plan.looks["table"], plan.language, brand, price) if has_table else {},
        "images": files["image"],
        "videos": files["video"],
        "audios": files["audio"],
        "i18n": {other: text(other)} if has_text and _happens(rng, 0.1) else {},
        "kind": "synthetic",
        "share_group": plan.group,
        "leaky_attributes": [],
    }


def _title(look: Look, language: str, brand: str, first: int) -> str:
    """Keywords as merchants write them, beginning with the `first` of them, apart from each other in Chinese too."""
    words = [_WORDS[language][name][getattr(look, name)] for name in Look.__slots__] + [brand]
    return " ".join(words[first:] + words[:first])


def _attributes(look: Look, language: str, brand: str, price: str) -> dict[str, str]:
    words = _WORDS[language]
    values = (
        words["colour"][look.colour],
        words["ground"][look.ground],
        words["shape"][look.shape],
        words["texture"][look.texture],
        f"{_CENTIMETRES[look.size]} cm",
        words["direction"][look.direction],
        brand,
        price,
    )
    return dict(zip(words["keys"], values, strict=True))
