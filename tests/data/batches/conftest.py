"""Real shards with real media, and loaders over them."""

import pytest
from loader_cases import DATA, MODALITIES, G

from m5ds.data.batches.loader import Loader
from m5ds.data.catalogue.quickstart import prepare_quickstart
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import ShardReader
from m5ds.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_quickstart(DATA, tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def decoder():
    return Decoder(device="cpu")


@pytest.fixture
def make(prepared, decoder):
    """Builds loaders and closes them."""
    loaders = []

    def build(split="train", data=DATA, modalities=MODALITIES, shards=None, tokenizer=None, decode=decoder, **options):
        options = {"seed": 5, "global_batch_size": G} | options
        loader = Loader(
            data,
            modalities,
            ShardReader(shards or prepared / "shards", split),
            tokenizer or load_tokenizer(prepared / "tokenizer"),
            decode,
            **options,
        )
        loaders.append(loader)
        return loader

    yield build
    for loader in loaders:
        loader.close()
