"""A run's checkpoint as a Hugging Face directory: weights, processor, tokenizer, model card, and a classifier's head:

python tools/export.py --checkpoint RUN --out DIR

`AutoModel` and `AutoProcessor` read it with trust_remote_code=True, and every downstream tool takes it as --checkpoint.
"""

import argparse
from pathlib import Path

from m5ds.cli import run_tool
from m5ds.train import runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder or one step-NNNNNNNN in it")
    parser.add_argument("--out", required=True, help="an empty or new folder")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out}: is not empty; name a new folder")

    from m5ds.downstream.embed.model_card import CARD, model_card
    from m5ds.downstream.embed.pretrained import export_pretrained, load_pretrained

    pretrained = load_pretrained(arguments.checkpoint)
    export_pretrained(pretrained, out)
    (out / CARD).write_text(model_card(pretrained))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB from {pretrained.source}, weights {pretrained.fingerprint[:12]}")


if __name__ == "__main__":
    runtime.prepare_environment()
    run_tool(main)
