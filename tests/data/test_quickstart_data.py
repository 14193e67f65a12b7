"""The quickstart's data are built once, by one process, and never taken half-finished."""

import multiprocessing
import warnings
from dataclasses import replace

import pytest

from m5ds.config import DataConfig, TokenizerConfig
from m5ds.data import quickstart
from m5ds.data.manifest import read_manifest
from m5ds.data.quickstart import prepare_quickstart
from m5ds.data.reader import ShardReader
from m5ds.data.tokenizer import load_tokenizer

CONFIG = DataConfig(quickstart_products=60, tokenizer=TokenizerConfig(vocab_size=600))


@pytest.fixture
def builds(monkeypatch):
    """Counts the catalogues that are made."""
    made = []
    make_catalogue = quickstart.synthetic.make_catalogue

    def counted(*arguments):
        made.append(arguments)
        return make_catalogue(*arguments)

    monkeypatch.setattr(quickstart.synthetic, "make_catalogue", counted)
    return made


def test_it_is_built_once_and_holds_shards_and_a_tokenizer(tmp_path, builds):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = prepare_quickstart(CONFIG, tmp_path)
    assert prepare_quickstart(CONFIG, tmp_path) == first
    assert len(builds) == 1
    manifest = read_manifest(str(first / "shards"))
    assert sum(split.num_products for split in manifest.splits.values()) == 60
    tokenizer = load_tokenizer(first / "tokenizer")
    product = ShardReader(first / "shards", "validation").read(0, 0)
    assert tokenizer.encode(product.title)


def test_keys_of_the_table_are_single_pieces(tmp_path):
    """A key that is only ever seen by itself was once cut into syllables, and the table did not fit its 32 tokens."""
    tokenizer = load_tokenizer(prepare_quickstart(CONFIG, tmp_path) / "tokenizer")
    for word in ("Colour", "Base", "Pattern", "Size", "颜色", "底色"):
        assert len(tokenizer.encode(word)) == 1, word


def test_other_settings_get_a_folder_of_their_own(tmp_path):
    one = prepare_quickstart(CONFIG, tmp_path)
    assert prepare_quickstart(replace(CONFIG, quickstart_seed=1), tmp_path) != one
    assert prepare_quickstart(replace(CONFIG, shuffle_pairs=True), tmp_path) != one
    assert prepare_quickstart(replace(CONFIG, prefetch_steps=7), tmp_path) == one


def test_a_build_that_was_cut_off_is_begun_again(tmp_path, monkeypatch, builds):
    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "train_tokenizer", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_quickstart(CONFIG, tmp_path)
    target = prepare_quickstart(CONFIG, tmp_path)
    assert len(builds) == 2 and (target / "tokenizer").is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [target.name]


def _prepare(directory, made):
    make_catalogue = quickstart.synthetic.make_catalogue

    def noted(*arguments):
        made.put(1)
        return make_catalogue(*arguments)

    quickstart.synthetic.make_catalogue = noted
    prepare_quickstart(CONFIG, directory)


def test_processes_that_start_together_build_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    made = context.Queue()
    processes = [context.Process(target=_prepare, args=(tmp_path, made)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    made.get(timeout=5)
    assert made.empty()
