"""Decode every file of a media.jsonl and say what became of it: `tools/check_media.py MEDIA.jsonl [--csv OUT.csv]`.

Each line names a `path` beside the file and a `kind` (image, video, audio, or a plugin's); `ffmpeg.ok` or `pillow.ok`,
where given, is what another decoder made of it and is shown where we differ. Ends with counts and the process's peak
memory.
"""

import argparse
import csv
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from m5ds import inputs, modality, plugins
from m5ds.data.decode.decoder import Decoder
from m5ds.inputs.keyed import Draws
from m5ds.inputs.media import MediaItem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("listing", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--batch", type=int, default=32, help="files decoded together")
    plugins.add_flag(parser)
    arguments = parser.parse_args()
    plugins.load_flagged(arguments)
    decoder = Decoder("cpu", 1)
    specs = {kind.medium: kind() for kind in inputs.kinds().values() if kind.medium is not None}
    with arguments.listing.open() as lines:
        records = [json.loads(line) for line in lines]
    start_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    table, slowest = [], (0.0, "")
    for kind in (name for name in modality.names() if name in specs):
        chosen = [record for record in records if record["kind"] == kind]
        for first in range(0, len(chosen), arguments.batch):
            part = chosen[first : first + arguments.batch]
            files = [(arguments.listing.parent / record["path"]).read_bytes() for record in part]
            items = [MediaItem(record["path"], record["path"], data) for record, data in zip(part, files, strict=True)]
            began = time.perf_counter()
            read = specs[kind].rows_of_files(items, decoder, Draws.centre(len(items)))
            slowest = max(slowest, ((time.perf_counter() - began) / len(items), items[0].member))
            reasons = {bad.member: bad.reason for bad in read.failures}
            for record in part:
                other = (record.get("ffmpeg") or record.get("pillow") or {}).get("ok")
                reason = reasons.get(record["path"], "")
                table.append(
                    [record["path"], kind, record.get("what", ""), "absent" if reason else "decoded", other, reason]
                )
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "kind", "what", "outcome", "other_decoder_ok", "reason"])
            writer.writerows(table)
    for path, _, _, outcome, other, reason in table:
        if reason or other is False:
            print(f"{outcome:8} other={other} {path}: {reason}")
    for (kind, outcome), count in sorted(Counter((row[1], row[3]) for row in table).items()):
        print(f"{kind} {outcome}: {count}")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory {peak_mib} MiB, {start_mib} before the first file; slowest batch {slowest[0]:.3f} s a file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
