"""An exported folder, used as its card says: in an empty place, without `import m5ds` and without DALI."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, BertTokenizerFast

from m5ds.data.catalogue.quickstart import SHARDS, TOKENIZER, prepare_quickstart
from m5ds.data.tokenizer import load_tokenizer
from m5ds.downstream.embed.encoding import Request, encode_split
from m5ds.downstream.embed.evaluation_data import EvaluationData
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.model_card import LOADING, model_card
from m5ds.downstream.embed.pretrained import Pretrained, export_pretrained, fingerprint, load_pretrained
from m5ds.inputs import FeatureRows, RegionFeatures
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.processor import M5Processor

ROOT = Path(__file__).resolve().parents[2]
from downstream_examples import tiny_run  # noqa: E402
from export_cases import read_products, run_in_an_empty_folder, write_media  # noqa: E402

from m5ds.config import DataConfig, TokenizerConfig  # noqa: E402


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    settings = DataConfig(quickstart_products=32, tokenizer=TokenizerConfig(vocab_size=600))
    return prepare_quickstart(settings, tmp_path_factory.mktemp("data")) / SHARDS


def loaded(folder: Path, tokenizer, *overrides: str, **modalities) -> Pretrained:
    """An untrained model; `modalities` replaces fields of some modalities' settings."""
    spec = tiny_run(folder, *overrides).model
    changed = {name: dataclasses.replace(spec.modalities[name], **fields) for name, fields in modalities.items()}
    spec = dataclasses.replace(spec, modalities={**spec.modalities, **changed})
    config = M5Config.for_tokenizer(spec, tokenizer, initializer_seed=3)
    model = M5ForPretraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial values, where everything is nearly linear
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.tie_weights()
    return Pretrained(model=model, tokenizer=tokenizer, fingerprint=fingerprint(model, None), source="here")


def exported(tmp_path: Path, pretrained: Pretrained) -> Path:
    out = tmp_path / "out"
    export_pretrained(pretrained, out)
    (out / "README.md").write_text(model_card(pretrained))
    return out


POLICIES = {
    "drop": (),
    "token": ("model.absent=token",),
    "zeros": ("model.absent=zeros",),
    "joint": ("model.blocks.cross={visibility: all}",),
}


def test_raw_products_get_the_engines_embeddings_without_dali_or_an_import_of_ours(tmp_path, shards):
    raw, engine = {}, {}
    for name, overrides in POLICIES.items():
        (tmp_path / name).mkdir()
        pretrained = loaded(tmp_path / name, load_tokenizer(shards.parent / TOKENIZER), *overrides)
        exported(tmp_path / name, pretrained)
        data = EvaluationData(str(shards), "validation", pretrained.model.spec, pretrained.tokenizer, batch_size=4)
        options = FeatureOptions(modalities=pretrained.model.names)
        engine[name] = encode_split(pretrained, data, [Request(options=options)])[0]
        raw = write_media(tmp_path, read_products(data))[::-1]  # in another order than the engine's batches
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    code = f"""
import json
assert not [name for name in sys.modules if name.split(".")[0] == "m5ds"]
raw = json.load(open({str(tmp_path / "raw.json")!r}))
for name in {list(POLICIES)}:
    directory = {str(tmp_path)!r} + "/" + name + "/out"
    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
    model = AutoModel.from_pretrained(directory, trust_remote_code=True).eval()
    vectors = torch.cat([model.embed(processor(raw[:3])), model.embed(processor(raw[3:]))])
    inputs = processor(raw, return_tensors="pt")
    assert model(**inputs).fused_BMD.shape[0] == len(raw)
    np.save(directory + "/vectors.npy", vectors.numpy())
model.save_pretrained("again")
processor.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True).eval()
twice = AutoProcessor.from_pretrained("again", trust_remote_code=True)
assert torch.equal(again.embed(twice(raw[:3])), vectors[:3])
assert AutoConfig.from_pretrained("again", trust_remote_code=True).spec == model.spec
assert sys.modules["nvidia.dali"] is None
"""
    run_in_an_empty_folder(tmp_path, code)
    for name, expected in engine.items():
        found = np.load(tmp_path / name / "out" / "vectors.npy")[::-1]
        assert [item["id"] for item in raw[::-1]] == list(expected.ids)
        np.testing.assert_allclose(found, expected.vector_ND, atol=1e-6, err_msg=name)
    names = sorted(path.name for path in (tmp_path / "empty" / "again").iterdir())
    assert names == ["config.json", "model.safetensors", "modeling_m5ds.py", "processor_config.json", "tokenizer"]


def test_a_model_of_features_and_a_hugging_face_tokenizer_works_too(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "lamp", "colour", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    pretrained = loaded(
        tmp_path,
        load_tokenizer(tmp_path / "bert"),
        video={"embedder": "feature_rows", "mask_unit": "row", "input": FeatureRows(rows=4, dim=6)},
        image={"embedder": "regions", "input": RegionFeatures(max_regions=5, dim=7)},
    )
    out = exported(tmp_path, pretrained)
    products = """[
    {"title": "red lamps", "videos": np.ones((3, 6)) * 0.3},
    {"attributes": {"colour": "blue"}},
    {"images": {"features": np.ones((2, 7)), "boxes": np.array([[0, 0, 4, 4], [1, 1, 3, 2.0]]), "size": [8, 8]}},
    {},
]"""
    code = f"""
processor = AutoProcessor.from_pretrained({str(out)!r}, trust_remote_code=True)
model = AutoModel.from_pretrained({str(out)!r}, trust_remote_code=True).eval()
np.save({str(tmp_path / "vectors.npy")!r}, model.embed(processor({products})).numpy())
"""
    run_in_an_empty_folder(tmp_path, code)
    maker = M5Processor.for_model(pretrained.model.spec, pretrained.tokenizer)
    expected = pretrained.model.embed(maker(eval(products, {"np": np})))
    found = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert np.abs(found[:3]).sum(1).all() and not found[3].any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shards):
    """An export and what it was made of."""
    root = tmp_path_factory.mktemp("export")
    pretrained = loaded(root, load_tokenizer(shards.parent / TOKENIZER))
    return exported(root, pretrained), pretrained


def snippet_of(path: Path) -> str:
    """The one Python block of a page that loads an export."""
    found = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    (snippet,) = [text for text in found if "AutoModel" in text]
    return snippet


def test_the_snippets_of_the_card_and_of_the_documentation_run(tmp_path, folder):
    card, page = snippet_of(folder[0] / "README.md"), snippet_of(ROOT / "docs" / "model.md")
    assert card.strip() == LOADING
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (30, 20), "red").save(tmp_path / "empty" / "a.jpg")
    code = f"""directory = {str(folder[0])!r}
{card}
print(similarity.shape)
{page}
print(vectors.shape, output.fused_BMD.shape)
"""
    shown = run_in_an_empty_folder(tmp_path, code)
    assert "torch.Size([2, 2])" in shown and "torch.Size([2, 16]) torch.Size([2, 5, 16])" in shown


def test_the_card_says_what_the_model_is(folder):
    card = (folder[0] / "README.md").read_text()
    front = card.split("---")[1]
    for line in ("library_name: transformers", "pipeline_tag: feature-extraction", "license: other", "- m5ds"):
        assert line in front
    pretrained = folder[1]
    assert pretrained.fingerprint in card and "CC BY-NC-SA 4.0" in card and "academic use only" in card
    assert "image (image_patches), text (text_tokens)" in card
    assert "`images`, `videos`, `audios`" in card


@pytest.mark.slow
def test_without_m5ds_the_folder_says_what_to_install(tmp_path, folder):
    code = f"""
sys.modules["m5ds"] = None
try:
    AutoModel.from_pretrained({str(folder[0])!r}, trust_remote_code=True)
except ImportError as error:
    print(error)
"""
    shown = run_in_an_empty_folder(tmp_path, code)
    assert "this model is loaded by the package m5ds" in shown and "pip install ." in shown


def test_an_import_of_the_hub_makes_the_auto_classes_know_the_model(folder):
    import m5ds.hub

    for auto_class in (AutoModel, AutoModelForPreTraining):
        assert type(auto_class.from_pretrained(folder[0])) is M5ForPretraining is m5ds.hub.M5ForPretraining
    assert type(AutoConfig.from_pretrained(folder[0])) is M5Config
    assert type(AutoProcessor.from_pretrained(folder[0])) is M5Processor is m5ds.hub.M5Processor


def test_an_export_is_still_a_checkpoint_of_the_downstream_tools(folder):
    assert load_pretrained(folder[0]).fingerprint == folder[1].fingerprint
