"""The nearest products to a text, picture, clip, sound or attributes, with the modalities that each product has:

python tools/search.py EMB --checkpoint RUN --text "red kettle" --image kettle.jpg --attr brand=Acme [--top 10]
    [--index flat|ivfpq|hnsw] [--shards DIR]
"""

import argparse
import time
from pathlib import Path

from m5ds import modality, plugins
from m5ds.cli import run_tool
from m5ds.train import runtime


def main() -> None:
    early = argparse.ArgumentParser(add_help=False)
    plugins.add_flag(early)
    plugins.load_flagged(early.parse_known_args()[0])
    with_files = [row.name for row in modality.table() if row.lists_files]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[early]
    )
    parser.add_argument("embeddings", help="a folder that tools/embed.py wrote")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="the checkpoint that made the embeddings")
    parser.add_argument("--text", default="", help="words of a title")
    parser.add_argument("--attr", action="append", default=[], metavar="KEY=VALUE", help="a row of the table")
    for name in with_files:
        parser.add_argument(f"--{name}", type=Path, help=f"a file with the product's {name}")
    parser.add_argument("--top", type=int, default=10, help="how many products to print (default: 10)")
    parser.add_argument(
        "--index", default="flat", choices=("flat", "ivfpq", "hnsw"), help="FAISS index (default: flat)"
    )
    parser.add_argument("--shards", help="shard directory, to print titles and categories too")
    arguments = parser.parse_args()
    pairs = [text.partition("=") for text in arguments.attr]
    for (key, sign, _), text in zip(pairs, arguments.attr, strict=True):
        if not sign or not key:
            raise ValueError(f"--attr {text!r} is not of the form KEY=VALUE")

    from m5ds.downstream.embed.embeddings import read_embeddings
    from m5ds.downstream.embed.pretrained import load_pretrained
    from m5ds.downstream.search.index import build_index, exact_topk, recall_of, search
    from m5ds.downstream.search.query import Query, encode_query

    products = read_embeddings(arguments.embeddings)
    files = {name: path for name in with_files if (path := getattr(arguments, name)) is not None}
    query = Query(text=arguments.text, attributes=tuple((key, value) for key, _, value in pairs), files=files)
    vector = encode_query(load_pretrained(arguments.checkpoint), query, products.info)
    shown = products.take(~products.empty_N)
    index = build_index(shown.vector_ND, arguments.index)
    started = time.perf_counter()
    scores, rows = search(index, vector, arguments.top)
    seconds = time.perf_counter() - started
    details = describe(arguments.shards, products.info.split, [shown.ids[row] for row in rows[0] if row >= 0])
    for place, (score, row) in enumerate(zip(scores[0], rows[0], strict=True), start=1):
        if row < 0:
            break
        names = [n for n, has in zip(shown.info.model_modalities, shown.present_NM[row], strict=True) if has]
        print(f"{place:>3}  {score:+.4f}  {shown.ids[row]:<24} {'+'.join(names):<32} {details.get(shown.ids[row], '')}")
    print(f"{arguments.index} index over {len(shown)} products, {1000 * seconds:.1f} ms", end="")
    if arguments.index != "flat":
        exact = exact_topk(vector, shown.vector_ND, arguments.top)[1]
        print(f", recall@{arguments.top} against exact search {recall_of(rows, exact):.2f}", end="")
    print()


def describe(shards: str | None, split: str, wanted: list[str]) -> dict[str, str]:
    """id -> title and category of the found products, where the shards are given."""
    if shards is None:
        return {}
    from m5ds.data.shards.reader import ShardReader

    reader = ShardReader(shards, split)
    names, found = set(wanted), {}
    for shard in range(len(reader.shard_sizes)):
        for index, name in enumerate(reader.index(shard).table["id"].to_pylist()):
            if name in names:
                product = reader.read(shard, index)
                found[name] = f"{product.title} [{' / '.join(product.category)}]"
    return found


if __name__ == "__main__":
    runtime.prepare_environment()
    run_tool(main)
