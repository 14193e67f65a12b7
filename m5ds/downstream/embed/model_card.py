"""The README.md of an exported model: what it is, what it was trained on, how well it does, how to load it."""

from pathlib import Path
from typing import Any

from m5ds import modality
from m5ds.data.shards.manifest import read_manifest
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.files import read_lines

CARD = "README.md"
LOADING = """from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
products = [
    {"id": "a", "title": "Red lamp", "attributes": {"colour": "red"}},
    {"id": "b", "title": "Blue lamp", "description": "For the desk."},
]
vectors = model.embed(processor(products))
similarity = vectors @ vectors.T"""
"""Loads the folder `directory`; tests run it."""

_FRONT = """---
library_name: transformers
pipeline_tag: feature-extraction
license: other
license_name: depends-on-the-training-data
tags:
- m5ds
- multimodal
- product-retrieval
- custom_code
---
"""
_LICENCE = """The code (m5ds) is Apache-2.0. The weights carry what their training data allows, which this file cannot
know. Weights trained on M5Product are bound by its terms: CC BY-NC-SA 4.0, and a commitment letter that allows
academic use only.
"""


def model_card(pretrained: Pretrained) -> str:
    """The card's text."""
    model, state, run = pretrained.model, pretrained.state, pretrained.run
    spec = model.spec
    parameters = sum(parameter.numel() for parameter in model.parameters())
    title = "m5ds model" if run is None else run["name"]
    facts = {
        "modalities": ", ".join(f"{name} ({spec.modalities[name].input.kind})" for name in model.names),
        "parameters": f"{parameters / 1e6:.1f} M, fp32",
        "width": f"{spec.hidden_size}; {spec.projection_dim} for contrastive states",
        "layers": f"{len(model.blocks)}, of which {model.num_unimodal} see one modality alone",
        "absent modalities": spec.absent,
        **{
            f"losses of {name}": ", ".join(term.name for term in objective.terms)
            for name, objective in model.objectives.chosen()
        },
        "harmony": spec.harmony.kind,
        "weights": f"sha256 {pretrained.fingerprint}",
    }
    parts = [
        _FRONT,
        f"# {title}",
        "Product embeddings from any of its modalities, pretrained with m5ds.",
        _table("model", facts),
        "## Training",
        _table("training", _training(state, run)) if state and run else "The run that made it is not recorded here.",
        "## Validation",
        _table("held-out products", _validation(pretrained)) if _validation(pretrained) else "None was recorded.",
        "## Use",
        "m5ds must be installed (`pip install .` in a clone of its repository); NVIDIA DALI need not be. `directory` is"
        " this folder.",
        f"```python\n{LOADING}\n```",
        "A product is a mapping with any of `id`, `title`, `description`, `attributes`"
        + "".join(f", `{field}`" for field in _media_fields(pretrained))
        + "; a medium is a path, bytes, a PIL image or an array of features. What is left out is absent.",
        "## Licence",
        _LICENCE,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _training(state: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    train = run["train"]
    return {
        "data": f"{run['data']['shards']}, manifest {state['manifest_hash']}",
        **_products(run["data"]["shards"], state["manifest_hash"]),
        "steps": f"{state['step']}, {train['global_batch_size']} products each",
        "learning rate": f"{train['learning_rate']:g}",
        "precision": f"{state.get('precision', 'unknown')}, ZeRO-{state.get('zero_stage', '?')}",
        "seed": str(run["seed"]),
    }


def _products(shards: str, wanted: str) -> dict[str, str]:
    """Products of each split and modality, where the shards are still there and still the same."""
    try:
        manifest = read_manifest(shards)
    except (ValueError, OSError):
        return {}
    if manifest.hash != wanted:
        return {}
    found = {}
    for name, split in manifest.splits.items():
        having = {
            kind: sum(count for pattern, count in split.presence_patterns.items() if kind in pattern.split("+"))
            for kind in manifest.modalities
        }
        counts = ", ".join(f"{kind} {count}" for kind, count in having.items())
        found[f"{name} products"] = f"{split.num_products} ({counts})"
    return found


def _validation(pretrained: Pretrained) -> dict[str, str]:
    """The last validation up to the exported step: losses, retrieval and the category search of metrics.jsonl."""
    if pretrained.state is None:
        return {}
    directory = Path(pretrained.source).parent.parent
    try:
        entries = read_lines(directory / "metrics.jsonl")
    except (ValueError, OSError):
        return {}
    held = [e for e in entries if e.get("kind") == "validation" and e.get("step", 0) <= pretrained.state["step"]]
    shown = ("loss/", "retrieval/", "category/")
    return {name: f"{value:.4f}" for name, value in held[-1].items() if name.startswith(shown)} if held else {}


def _media_fields(pretrained: Pretrained) -> list[str]:
    return [row.catalogue_field for row in map(modality.get, pretrained.model.names) if row.lists_files]


def _table(title: str, rows: dict[str, str]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
