"""Check a shard directory against its manifest: python tools/lint_shards.py SHARDS. Exit code 2 where there is a fault.

Byte-equal media in several splits are told, and a fault only where the shards were built with --group-by-content.
"""

import argparse

from m5ds import modality, plugins
from m5ds.cli import EXIT_USER_ERROR, run_tool
from m5ds.data.shards.lint import lint_shards
from m5ds.data.shards.manifest import CorruptShardError, read_manifest
from m5ds.data.shards.shared_media import find_shared_media


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="the shard directory, a path or an fsspec URL")
    plugins.add_flag(parser)
    arguments = parser.parse_args()
    plugins.load_flagged(arguments)
    directory, num_faults = arguments.shards, 0
    if unknown := set(read_manifest(directory).modalities) - set(modality.names()):
        raise ValueError(f"{directory}: unknown modalities {', '.join(sorted(unknown))}; pass their --plugin")
    for fault in lint_shards(directory):
        print(fault, flush=True)
        num_faults += 1
    manifest = read_manifest(directory)
    try:
        for line in find_shared_media(directory, manifest).lines():
            print(line)
    except (CorruptShardError, FileNotFoundError):
        print("byte-equal media in several splits: not looked for, since a shard is damaged")
    sizes = ", ".join(f"{name} {split.num_products}" for name, split in manifest.splits.items())
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    print(f"{directory}: {num_faults or 'no'} faults in {num_shards} shards ({sizes}), manifest {manifest.hash[:16]}")
    return EXIT_USER_ERROR if num_faults else 0


if __name__ == "__main__":
    run_tool(main)
