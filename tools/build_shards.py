"""Build shards from a catalogue: python tools/build_shards.py CATALOGUE --out DIR (schema: docs/catalogue.md)."""

import argparse
from pathlib import Path

from m5ds import plugins
from m5ds.cli import run_tool
from m5ds.data.catalogue.formats import FORMATS
from m5ds.data.catalogue.records import CatalogueOptions
from m5ds.data.shards.build import MISSING_MEDIA_FILE, BuildOptions, build_shards
from m5ds.data.shards.shared_media import PLACEHOLDER_PRODUCTS, find_shared_media


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("catalogue", type=Path, help="items.jsonl, items.parquet, or the official M5Product .json")
    parser.add_argument("--out", type=Path, required=True, help="the shard directory")
    parser.add_argument("--format", choices=FORMATS, help="the catalogue's format; by its suffix if not given")
    parser.add_argument(
        "--media", type=Path, help="folder that media paths are relative to; the catalogue's if not given"
    )
    parser.add_argument(
        "--group-key", default="share_group", help="products with one value of this field share a split"
    )
    parser.add_argument("--ratios", type=float, nargs=3, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VAL", "TEST"))
    parser.add_argument("--shard-products", type=int, default=1000, help="largest number of products of a shard")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the order of products")
    parser.add_argument(
        "--language", help="take titles and descriptions from i18n of this language where there are any"
    )
    parser.add_argument("--missing-media", choices=("error", "absent"), default="error", help="listed files not there")
    parser.add_argument(
        "--max-media-per-modality", type=int, metavar="N", help="keep the first N files of each modality"
    )
    parser.add_argument("--audio-from-video", action="store_true", help="declare audio where only the clip has sound")
    parser.add_argument(
        "--group-by-content", action="store_true", help="products that share byte-equal media share a split too"
    )
    parser.add_argument(
        "--placeholder-products",
        type=int,
        default=PLACEHOLDER_PRODUCTS,
        metavar="N",
        help="media of more products than this are placeholders, which say nothing and group nothing",
    )
    parser.add_argument("--overwrite", action="store_true", help="build again over finished shards")
    plugins.add_flag(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    plugins.load_flagged(arguments)
    options = BuildOptions(
        catalogue=CatalogueOptions(
            format=arguments.format,
            media=arguments.media,
            group_key=arguments.group_key,
            language=arguments.language,
            missing_media=arguments.missing_media,
        ),
        ratios=tuple(arguments.ratios),
        shard_products=arguments.shard_products,
        seed=arguments.seed,
        max_media_per_modality=arguments.max_media_per_modality,
        audio_from_video=arguments.audio_from_video,
        group_by_content=arguments.group_by_content,
        placeholder_products=arguments.placeholder_products,
    )
    manifest = build_shards(arguments.catalogue, arguments.out, options, overwrite=arguments.overwrite, progress=True)
    for name, split in manifest.splits.items():
        size = sum(entry.bytes for entry in split.shards)
        print(f"{name}: {split.num_products} products, {len(split.shards)} shards, {size / 1e6:.1f} MB")
    if manifest.missing_media:
        print(f"{manifest.missing_media} listed files are missing: {arguments.out / MISSING_MEDIA_FILE}")
    for line in find_shared_media(str(arguments.out), manifest).lines():
        print(line)
    print(f"manifest {manifest.hash[:16]} in {arguments.out}")


if __name__ == "__main__":
    run_tool(main)
