"""Real shards and a tiny model on disk, built once for the folder's tests."""

import pytest
from downstream_examples import tiny_run

from m5ds.config import DataConfig, TokenizerConfig
from m5ds.data.catalogue.quickstart import SHARDS, TOKENIZER, prepare_quickstart
from m5ds.data.tokenizer import load_tokenizer
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """48 synthetic products with real media, a train and a validation split, and their tokenizer beside them."""
    settings = DataConfig(quickstart_products=48, tokenizer=TokenizerConfig(vocab_size=600))
    return prepare_quickstart(settings, tmp_path_factory.mktemp("shards")) / SHARDS


@pytest.fixture(scope="session")
def exported(shards, tmp_path_factory):
    """A Hugging Face directory of an untrained tiny model, with the shards' tokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = load_tokenizer(shards.parent / TOKENIZER)
    config = M5Config.for_tokenizer(tiny_run(folder).model, tokenizer, initializer_seed=3)
    M5ForPretraining(config).save_pretrained(folder / "model")
    tokenizer.save(folder / "model" / "tokenizer")
    return folder / "model"
