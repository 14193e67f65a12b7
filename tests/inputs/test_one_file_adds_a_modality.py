"""toy_depth.py and toy_depth.yaml, and no other file, add a modality with a decoder of its own (CONTRIBUTING.md)."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import backward, batch_of, build, run
from plugin_scope import forgotten

from m5ds import config, modality, plugins
from m5ds.data.batches.loader import Loader
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.reader import ShardReader
from m5ds.data.tokenizer import train_tokenizer
from m5ds.inputs import kinds
from m5ds.kernels.embed_modalities import draw_mask
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.masking import draw_masks, mask_spec
from m5ds.processor import M5Processor

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "tests/inputs/toy_depth.py"
NUM = 12


@pytest.fixture
def at_root(monkeypatch):
    """Where a run starts: plugins' paths are relative to the working directory."""
    monkeypatch.chdir(ROOT)
    with forgotten():
        yield


def read_run():
    return config.load(ROOT / "tests/inputs/toy_depth.yaml")


def toy():
    """The plugin's module, as the run imported it."""
    return sys.modules[kinds()["depth_patches"].__module__]


def write_catalogue(folder: Path) -> dict[str, np.ndarray]:
    """Twelve products: three without a depth map, one whose only map is damaged, one whose first is."""
    rng = np.random.default_rng(0)
    maps = {f"p{number}": rng.integers(500, 4000, (9 + number, 12)) for number in range(NUM) if number % 4 != 3}
    records = [{"id": f"p{number}", "title": f"number {number}"} for number in range(NUM)]
    for name, millimetres_HW in maps.items():
        (folder / f"{name}.dpth").write_bytes(toy().encode(millimetres_HW))
        records[int(name[1:])]["depths"] = [f"{name}.dpth"]
    (folder / "bad.dpth").write_bytes(b"DPTH junk")
    records[4]["depths"] = ["bad.dpth"]
    records[5]["depths"] = ["bad.dpth", "p5.dpth"]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    return maps


def test_its_files_become_shards_batches_losses_and_gradients(at_root, tmp_path):
    run_config = read_run()
    assert modality.names()[-1] == "depth" and run_config.model.modality_names == ("text", "depth")
    maps = write_catalogue(tmp_path)
    manifest = build_shards(tmp_path / "items.jsonl", tmp_path / "shards", BuildOptions(ratios=(1.0, 0.0, 0.0)))
    assert manifest.split("train").presence_patterns == {"text": 3, "text+depth": 9}
    tokenizer = train_tokenizer([f"number {number}" for number in range(200)] * 5, 280, num_threads=1)
    loader = Loader(
        run_config.data,
        run_config.model.modalities,
        ShardReader(tmp_path / "shards", "train"),
        tokenizer,
        Decoder("cpu"),
        seed=5,
        global_batch_size=NUM,
    )
    (step,) = loader.steps(num_steps=1)
    (batch,) = step.micro_batches
    assert {bad.product_id for bad in step.bad_media} >= {"p4"} and step.bad_media[0].reason.startswith("depth map of ")
    depth = batch.modalities["depth"]
    lengths = dict(zip(batch.ids, depth.length_B.tolist(), strict=True))
    assert lengths == {f"p{number}": 0 if number in (3, 4, 7, 11) else 16 for number in range(NUM)}
    first = next(name for name in batch.ids if lengths[name])
    top, left = (maps[first].shape[0] - 8) // 2, 2
    patch = maps[first][top : top + 2, left : left + 2] / 1e3
    np.testing.assert_allclose(depth.values_NF[0], patch.reshape(-1), rtol=1e-6)

    model = M5ForPretraining(M5Config.for_tokenizer(run_config.model, tokenizer, plugins=run_config.plugins)).train()
    losses = run(model, batch).losses
    assert set(losses) == {"mlm", "mdm", "itc/text-depth"} and all(loss.isfinite() for loss in losses.values())
    gradient = backward(model, batch)
    assert all(value.isfinite().all() for value in gradient.values())
    assert gradient["embeddings.embedders.depth.projection.weight"].abs().max() > 0


def test_its_masks_are_keyed_by_its_number_not_by_its_place(at_root):
    spec = read_run().model
    model = build(spec)
    batch = batch_of(spec, [[True, True]] * 40)
    rows = batch.modalities["depth"]
    product_N = batch.product_B.repeat_interleave(rows.length_B)
    draw_N = torch.zeros_like(product_N)

    def drawn(number):
        how = mask_spec("depth", spec.modalities["depth"], model.config)
        return draw_mask(rows.unit_N, rows.part_N, product_N, draw_N, number, 3, how)

    masked_N = draw_masks(batch, model.config, 3)["depth"]
    assert torch.equal(masked_N, drawn(17)) and not torch.equal(masked_N, drawn(5))


def test_its_frames_are_masked_whole(at_root):
    spec = read_run().model
    depth = replace(spec.modalities["depth"], mask_unit="frame")
    spec = replace(spec, modalities={**spec.modalities, "depth": depth})
    batch = batch_of(spec, [[True, True]] * 40, full=True)
    masked_N = draw_masks(batch, build(spec).config, 3)["depth"]
    steps = masked_N.reshape(-1, 4)
    assert torch.equal(steps.any(1), steps.all(1)) and 0 < steps.all(1).float().mean() < 1


def test_a_saved_model_says_which_plugin_it_lacks(at_root, tmp_path):
    with forgotten():
        run_config = read_run()
        spec = run_config.model
        tokenizer = train_tokenizer([f"number {number}" for number in range(200)] * 5, 280, num_threads=1)
        settings = M5Config.for_tokenizer(spec, tokenizer, plugins=run_config.plugins)
        settings.save_pretrained(tmp_path)
        M5Processor.for_model(spec, tokenizer, device="cpu").save_pretrained(tmp_path)
        files = {"title": "number 1", "depths": toy().encode(np.full((8, 8), 1000))}
        expected = M5Processor.from_pretrained(tmp_path, device="cpu")([files])
        assert expected.present_BM.tolist() == [[True, True]]
        assert M5Config.from_pretrained(tmp_path).spec == spec
        assert pickle.loads(pickle.dumps(run_config)) == run_config
    assert "depth" not in modality.names() and "depth_patches" not in kinds()
    loaded = M5Config.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="input kind 'depth_patches' is unknown; known: ") as caught:
        _ = loaded.spec
    assert f"the model was trained with plugins that are not loaded: {PLUGIN}; pass each" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="processor_config.json: .*input kind 'depth_patches' is unknown"):
        M5Processor.from_pretrained(tmp_path, device="cpu")
    plugins.load(loaded.plugins, "here")
    again = M5Processor.from_pretrained(tmp_path, device="cpu")([files])
    assert loaded.spec.modality_names == ("text", "depth")
    assert torch.equal(again.modalities["depth"].values_NF, expected.modalities["depth"].values_NF)


def test_a_model_whose_modality_alone_is_a_plugins_says_so(at_root):
    with forgotten():
        spec = read_run().model
        tree = json.loads(M5Config.from_spec(spec, vocab_size=9, plugins=[PLUGIN]).to_json_string())
        tree["model"]["modalities"]["depth"]["input"] = {"kind": "feature_rows", "rows": 4, "dim": 3}
    with pytest.raises(ValueError, match=r"unknown modality 'depth'.*plugins that are not loaded: .*toy_depth\.py"):
        _ = M5Config(**tree).spec


def test_a_run_without_plugins_is_recorded_as_before(at_root):
    tree = read_run().to_dict()
    assert tree["plugins"] == [PLUGIN] and config.parse(tree, "state.json").plugins == [PLUGIN]
    plain = config.load(ROOT / "configs/run/quickstart.yaml")
    assert plain.plugins == [] and "plugins" not in plain.to_dict()
    assert "plugins" not in M5Config.from_spec(plain.model, vocab_size=9).to_diff_dict()
