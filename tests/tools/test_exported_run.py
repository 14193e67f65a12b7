"""A run of two ranks under ZeRO-3, exported, and loaded by transformers in a place that holds nothing of ours."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
import launching  # noqa: E402
import small_run  # noqa: E402
from export_cases import read_products, run_in_an_empty_folder, write_media  # noqa: E402

from m5ds.downstream.embed.embeddings import read_embeddings  # noqa: E402
from m5ds.downstream.embed.evaluation_data import EvaluationData  # noqa: E402
from m5ds.downstream.embed.pretrained import load_pretrained  # noqa: E402

TOOLS = ROOT / "tools"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_an_exported_run_of_two_ranks_embeds_raw_products_as_the_embedding_tool_does(tmp_path):
    data = small_run.SmallData(tmp_path / "data")
    launching.run_ranks(launching.ENTRY, data.arguments(tmp_path / "runs", steps=3), 2, timeout=500)
    run, out, vectors = tmp_path / "runs" / "quickstart", tmp_path / "export", tmp_path / "vectors.npz"
    (tag,) = (run / "checkpoints").glob("step-*")
    assert len(list(tag.glob("*zero_pp_rank_*_optim_states.pt"))) == 2, "a shard for each rank"
    launching.run_ranks(TOOLS / "export.py", ["--checkpoint", str(run), "--out", str(out)], 1, timeout=300)
    kinds = {"fused": {}, "contrastive": {"operation": "concat", "normalized": False}}
    found = {}
    for states, options in kinds.items():
        arguments = ["--checkpoint", str(run), "--out", str(tmp_path / states), "--split", "validation"]
        arguments += ["--states", states, "--operation", options.get("operation", "mean")]
        arguments += [] if options.get("normalized", True) else ["--unnormalized"]
        launching.run_ranks(TOOLS / "embed.py", arguments, 2, timeout=300)
        found[states] = read_embeddings(tmp_path / states)

    pretrained = load_pretrained(run)
    products = read_products(
        EvaluationData(str(data.shards), "validation", pretrained.model.spec, pretrained.tokenizer, batch_size=4)
    )
    (tmp_path / "media").mkdir()
    (tmp_path / "raw.json").write_text(json.dumps(write_media(tmp_path / "media", products)))
    run_in_an_empty_folder(
        tmp_path,
        f"""
import json
directory = {str(out)!r}
raw = json.load(open({str(tmp_path / "raw.json")!r}))
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
found = {{}}
for states, options in {kinds}.items():
    parts = [model.embed(processor(raw[i : i + 5]), states=states, **options) for i in range(0, len(raw), 5)]
    found[states] = torch.cat(parts).numpy()
np.savez({str(vectors)!r}, ids=[product["id"] for product in raw], **found)
""",
    )
    loaded = np.load(vectors)
    assert len(loaded["ids"]) > 5
    for states, expected in found.items():
        place = {product: row for row, product in enumerate(expected.ids)}
        assert sorted(place) == sorted(loaded["ids"].tolist())
        wanted = expected.vector_ND[[place[product] for product in loaded["ids"].tolist()]]
        np.testing.assert_allclose(loaded[states], wanted, atol=1e-6, err_msg=states)
        assert len(np.unique(wanted.round(4), axis=0)) == len(wanted), "every product has a vector of its own"
