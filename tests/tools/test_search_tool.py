"""tools/search.py finds a product by what is known of it and says what is wrong in one line."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from m5ds.config import DataConfig, TokenizerConfig
from m5ds.data.catalogue.quickstart import SHARDS, TOKENIZER, prepare_quickstart
from m5ds.data.shards.reader import ShardReader
from m5ds.data.tokenizer import load_tokenizer
from m5ds.downstream.embed.embeddings import read_embeddings
from m5ds.downstream.embed.encoding import write_embeddings
from m5ds.downstream.embed.evaluation_data import EvaluationData
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.search.query import Query, encode_query
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining

ROOT = Path(__file__).resolve().parents[2]
from downstream_examples import tiny_run  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(shards, Hugging Face directory, embeddings of the training split)."""
    root = tmp_path_factory.mktemp("search")
    built = prepare_quickstart(DataConfig(quickstart_products=32, tokenizer=TokenizerConfig(vocab_size=600)), root)
    tokenizer = load_tokenizer(built / TOKENIZER)
    M5ForPretraining(M5Config.for_tokenizer(tiny_run(root).model, tokenizer)).save_pretrained(root / "model")
    tokenizer.save(root / "model" / "tokenizer")
    pretrained = load_pretrained(root / "model")
    data = EvaluationData(str(built / SHARDS), "train", pretrained.model.spec, tokenizer)
    options = FeatureOptions(modalities=pretrained.model.names)
    write_embeddings(pretrained, data, options, root / "embeddings")
    return built / SHARDS, root / "model", root / "embeddings"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("search_tool", ROOT / "tools" / "search.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_product_described_in_full_is_its_own_nearest_neighbour(place, tmp_path):
    shards, model, embeddings = place
    products = read_embeddings(embeddings)
    pretrained = load_pretrained(model)
    product = ShardReader(shards, "train").read(0, 5)
    files = {}
    for name, media in product.media.items():
        files[name] = tmp_path / media[0].name
        files[name].write_bytes(media[0].data)
    text = f"{product.title} {product.description}".strip()
    query = Query(text=text if "text" in product.present else "", attributes=tuple(product.attributes), files=files)
    vector = encode_query(pretrained, query, products.info)
    assert products.ids[(products.vector_ND @ vector[0]).argmax()] == product.id


def test_what_is_found_is_printed_with_its_modalities(place, tool, monkeypatch, capsys):
    shards, model, embeddings = place
    arguments = [str(embeddings), "--checkpoint", str(model), "--text", "striped", "--attr", "Color=Red", "--top", "4"]
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments, "--index", "hnsw", "--shards", str(shards)])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("text" in line or "image" in line for line in lines[:4])
    assert all("[" in line for line in lines[:4])
    assert "hnsw index over" in lines[4] and "recall@4" in lines[4]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to search for"),
        (["--attr", "brand"], "--attr 'brand' is not of the form KEY=VALUE"),
        (["--image", "no-such.jpg"], "--image no-such.jpg: no such file"),
        (["--image", str(ROOT / "setup.py")], "setup.py: cannot be decoded"),
    ],
)
def test_bad_queries_are_refused_in_one_line(place, tool, monkeypatch, more, message):
    _, model, embeddings = place
    monkeypatch.setattr(sys, "argv", ["search.py", str(embeddings), "--checkpoint", str(model), *more])
    with pytest.raises(ValueError, match=message) as error:
        tool.main()
    assert "\n" not in str(error.value)


def test_embeddings_of_another_model_are_refused(place):
    _, model, embeddings = place
    info = dataclasses.replace(read_embeddings(embeddings).info, model="0" * 64)
    with pytest.raises(ValueError, match="made by another model .000000000000. than"):
        encode_query(load_pretrained(model), Query(text="x"), info)
