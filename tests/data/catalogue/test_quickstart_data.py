"""The quickstart's data are built once, by one process, and never taken half-finished."""

import multiprocessing
import warnings
from dataclasses import replace

import pytest

from m5ds.config import DataConfig, TokenizerConfig
from m5ds.data.catalogue import quickstart
from m5ds.data.catalogue.quickstart import prepare_quickstart
from m5ds.data.shards import records as shard_records
from m5ds.data.shards.manifest import read_manifest
from m5ds.data.shards.reader import ShardReader
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


def test_what_is_built_is_what_the_settings_ask_for(tmp_path, builds, monkeypatch):
    """83 % and 17 % of the products in shards of at most 512; one thread, so that the pieces are the same anywhere."""
    built, trained = [], []
    real_build, real_train = quickstart.build_shards, quickstart.train_tokenizer

    def build(items, directory, options):
        built.append(options)
        return real_build(items, directory, options)

    def train(texts, vocab_size, path, **options):
        texts = list(texts)
        trained.append((texts, vocab_size, options))
        return real_train(texts, vocab_size, path, **options)

    monkeypatch.setattr(quickstart, "build_shards", build)
    monkeypatch.setattr(quickstart, "train_tokenizer", train)
    config = replace(CONFIG, quickstart_products=30, quickstart_seed=4, shuffle_pairs=True)
    target = prepare_quickstart(config, tmp_path / "new" / "folder")
    assert builds == [(target.with_name(target.name + ".part") / "catalogue", 30, 4, True)]
    (options,) = built
    assert (options.ratios, options.shard_products) == ((0.83, 0.17, 0.0), 512)
    manifest = read_manifest(str(target / "shards"))
    assert {name: split.num_products for name, split in manifest.splits.items()} == {"train": 25, "validation": 5}
    ((texts, vocab_size, options),) = trained
    assert vocab_size == 600 and options == {"num_threads": 1}
    records = shard_records.iterate_records(str(target / "shards"), manifest, "train")
    assert texts == [text for record in records for text in shard_records.sentences(record)]
    assert len(target.name) == len("quickstart-") + 12


def test_a_tokenizer_that_is_named_is_taken_over(tmp_path, monkeypatch):
    config = replace(CONFIG, quickstart_products=12)
    first = prepare_quickstart(config, tmp_path)
    monkeypatch.setattr(quickstart, "train_tokenizer", None)
    path = str(first / "tokenizer")
    second = prepare_quickstart(replace(config, tokenizer=TokenizerConfig(path=path)), tmp_path)
    assert second != first
    assert load_tokenizer(second / "tokenizer").encode("Colour") == load_tokenizer(path).encode("Colour")


def test_every_setting_that_shapes_the_data_is_part_of_the_folders_name(monkeypatch):
    named = quickstart._settings_hash(CONFIG)
    tokenizer = CONFIG.tokenizer
    for other in (
        replace(CONFIG, quickstart_products=61),
        replace(CONFIG, tokenizer=replace(tokenizer, vocab_size=601)),
        replace(CONFIG, tokenizer=replace(tokenizer, path="elsewhere")),
    ):
        assert quickstart._settings_hash(other) != named
    for name, value in (("RATIOS", (0.9, 0.1, 0.0)), ("_SHARD_PRODUCTS", 256), ("MANIFEST_VERSION", 2)):
        with monkeypatch.context() as patched:
            patched.setattr(quickstart, name, value)
            assert quickstart._settings_hash(CONFIG) != named, name
    for name in ("synthetic", "synthetic_media", "shard_records"):
        with monkeypatch.context() as patched:
            patched.setattr(quickstart, name, pytest)
            assert quickstart._settings_hash(CONFIG) != named, name
    assert quickstart._settings_hash(replace(CONFIG, num_threads=3, chunk_size=5)) == named
