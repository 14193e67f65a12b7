"""What a run reads: which tokenizer it owns, which shards are hashed, and what the loaders are told."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from catalogue_cases import record, write_catalogue
from ranks_as_threads import RanksAsThreads

from m5ds import config
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import CorruptShardError, read_manifest
from m5ds.train import sources
from m5ds.train.distributed import RankError

ROOT = Path(__file__).resolve().parents[2]
GIBIBYTE = 1024**3


def run_config(*overrides: str) -> config.RunConfig:
    return config.load(ROOT / "configs/run/quickstart.yaml", list(overrides))


def test_named_shards_are_read_where_they_are_and_the_quickstart_is_built_under_data(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(sources, "prepare_quickstart", lambda *given: asked.append(given) or Path("built"))
    assert sources.shard_directory(run_config("data.shards=s3://bucket/shards")) == "s3://bucket/shards"
    assert asked == []
    run = run_config("data.shards=quickstart")
    assert sources.shard_directory(run) == "built/shards"
    assert asked == [(run.data, Path("data"))]


@pytest.fixture
def tokenizers(monkeypatch) -> list[Path]:
    """A tokenizer's size stands at the end of its path. The paths that were loaded, in order."""
    loaded = []

    def load(path):
        loaded.append(Path(path))
        return SimpleNamespace(vocab_size=int(Path(path).name.split("-")[-1]), path=str(path))

    monkeypatch.setattr(sources, "load_tokenizer", load)
    return loaded


SAVED = Path("runs/a/checkpoints/step-1/tokenizer-50")


def test_a_resumed_run_keeps_the_checkpoints_tokenizer(tokenizers) -> None:
    run = run_config("data.tokenizer.path=null", "data.tokenizer.vocab_size=999")
    assert sources.run_tokenizer(run, "shards", SAVED, 999).path == str(SAVED)
    assert tokenizers == [SAVED]
    assert sources.run_tokenizer(run_config("data.tokenizer.path=t-50"), "shards", SAVED, None).path == str(SAVED)


def test_a_named_tokenizer_of_another_size_than_the_checkpoints_is_refused(tokenizers) -> None:
    with pytest.raises(ValueError, match="50") as error:
        sources.run_tokenizer(run_config("data.tokenizer.path=t-51"), "shards", SAVED, None)
    assert "51" in str(error.value) and f"the checkpoint {SAVED.parent}" in str(error.value)
    assert SAVED.name not in str(error.value)


@pytest.mark.parametrize("wanted", [None, 50])
def test_a_named_tokenizer_is_taken(tokenizers, wanted) -> None:
    run = run_config("data.tokenizer.path=t-50", "data.shards=quickstart")
    assert sources.run_tokenizer(run, "shards", None, wanted).path == "t-50"
    assert tokenizers == [Path("t-50")]


@pytest.mark.parametrize("wanted", [49, 51])
def test_a_named_tokenizer_of_another_size_than_asked_for_is_refused_with_the_remedy(tokenizers, wanted) -> None:
    with pytest.raises(ValueError, match=rf"t-50 has 50 tokens .* {wanted}; .*vocab_size=50$"):
        sources.run_tokenizer(run_config("data.tokenizer.path=t-50"), "shards", None, wanted)


def test_the_quickstarts_tokenizer_stands_beside_its_shards(monkeypatch) -> None:
    monkeypatch.setattr(sources, "load_tokenizer", lambda path: f"loaded {path}")
    monkeypatch.setattr(sources, "_train", lambda shards, size: f"trained on {shards} with {size}")
    settings = ["data.tokenizer.path=null", "data.tokenizer.vocab_size=777"]
    run = run_config("data.shards=quickstart", *settings)
    assert sources.run_tokenizer(run, "data/quickstart-1/shards", None, 777) == "loaded data/quickstart-1/tokenizer"
    run = run_config("data.shards=mine/shards", *settings)
    assert sources.run_tokenizer(run, "mine/shards", None, None) == "trained on mine/shards with 777"


def test_rank_0_alone_makes_the_tokenizer_and_its_error_reaches_all(monkeypatch) -> None:
    ranks = RanksAsThreads(monkeypatch, 3)
    makers = []
    monkeypatch.setattr(sources, "load_tokenizer", lambda path: makers.append(ranks.rank()) or f"loaded {path}")
    run = run_config("data.tokenizer.path=null", "data.shards=quickstart")
    assert ranks.run(lambda _: sources.run_tokenizer(run, "d/shards", None, None)) == ["loaded d/tokenizer"] * 3
    assert makers == [0]

    def missing(path):
        raise FileNotFoundError("no tokenizer")

    monkeypatch.setattr(sources, "load_tokenizer", missing)
    errors = ranks.run(lambda _: sources.run_tokenizer(run, "d/shards", None, None))
    assert [type(error) for error in errors] == [FileNotFoundError, RankError, RankError]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """40 products in shards of 8 with stand-in media; train and validation."""
    folder = tmp_path_factory.mktemp("shards")
    items = write_catalogue(folder, [record(number) for number in range(40)])
    build_shards(items, folder / "shards", BuildOptions(ratios=(0.7, 0.3, 0.0), shard_products=8))
    return str(folder / "shards")


def test_a_tokenizer_is_trained_on_the_first_products_of_the_train_split(shards, monkeypatch) -> None:
    read, trained = [], []

    def train(texts, size, **options):
        warnings.warn("fewer pieces than asked for", stacklevel=1)
        trained.append((sorted(texts), size, options))
        return "tokenizer"

    def records(*asked):
        read.append(asked)
        return iterate(*asked)

    iterate = sources.iterate_records
    monkeypatch.setattr(sources, "iterate_records", records)
    monkeypatch.setattr(sources, "train_tokenizer", train)
    run = run_config("data.tokenizer.path=null", "data.tokenizer.vocab_size=123", f"data.shards={shards}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sources.run_tokenizer(run, shards, None, None) == "tokenizer"
    manifest = read_manifest(shards)
    assert read == [(shards, manifest, "train", 200_000)]
    texts, size, options = trained[0]
    assert (size, options) == (123, {"num_threads": 1}), "one thread: the same pieces on every machine"
    # A record's title, description and attributes; which texts a product has is the business of sentences().
    expected = [text for item in iterate(shards, manifest, "train", None) for text in sources.sentences(item)]
    assert texts == sorted(expected) and len(texts) > 28


class Told:
    """Stands for a reader or a loader and remembers what it was told."""

    made: list["Told"]

    def __init__(self, *arguments, **options) -> None:
        self.arguments, self.options, self.closed = arguments, options, 0
        self.made.append(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def told(monkeypatch):
    """(readers, loaders) that were made, in order."""
    readers, loaders = (type(name, (Told,), {"made": []}) for name in ("Reader", "Loader"))
    monkeypatch.setattr(sources, "ShardReader", readers)
    monkeypatch.setattr(sources, "Loader", loaders)
    monkeypatch.setattr(sources, "Decoder", lambda: "decoder")
    return readers.made, loaders.made


def manifest_of(monkeypatch, **splits: tuple[int, list[int]]) -> None:
    """Shards of these splits: products, and bytes of each shard."""
    entries = {
        name: SimpleNamespace(num_products=products, shards=[SimpleNamespace(bytes=size) for size in sizes])
        for name, (products, sizes) in splits.items()
    }
    manifest = SimpleNamespace(splits=entries, split=entries.__getitem__, hash="abc", categories=("a", "b"))
    monkeypatch.setattr(sources, "read_manifest", lambda shards: manifest)


def test_the_loaders_are_told_the_runs_settings_and_the_rank(told, monkeypatch) -> None:
    readers, loaders = told
    manifest_of(monkeypatch, train=(9, [5]), validation=(1, [5]))
    batches = ["train.global_batch_size=24", "train.validation_batch_size=12", "train.accumulation=2", "seed=5"]
    run = run_config(*batches)
    monkeypatch.setattr(sources.distributed, "rank", lambda: 1)
    monkeypatch.setattr(sources.distributed, "world_size", lambda: 4)
    monkeypatch.setattr(sources.distributed, "gather_objects", lambda value: [value] * 4)
    opened = sources.open_sources(run, "shards", "tokenizer", lambda reader: ("chosen", reader))
    assert [reader.arguments for reader in readers] == [("shards", "train"), ("shards", "validation")]
    assert [loader.arguments for loader in loaders] == [
        (run.data, run.model.modalities, reader, "tokenizer", "decoder")
        for reader in (("chosen", readers[0]), readers[1])
    ]
    common = {"seed": 5, "rank": 1, "world_size": 4}
    assert loaders[0].options == {**common, "global_batch_size": 24, "accumulation": 2}
    assert loaders[1].options == {**common, "global_batch_size": 12, "training": False}
    assert opened == sources.Sources(
        shards="shards",
        manifest_hash="abc",
        categories=("a", "b"),
        tokenizer="tokenizer",
        training=loaders[0],
        validation=loaders[1],
    )
    opened.close()
    assert [loader.closed for loader in loaders] == [1, 1]


def test_without_a_choice_all_products_are_trained_on(told, monkeypatch) -> None:
    manifest_of(monkeypatch, train=(9, [5]))
    sources.open_sources(run_config(), "shards", "tokenizer")
    assert told[1][0].arguments[2] is told[0][0]


@pytest.mark.parametrize("splits", [{}, {"test": (5, [1])}, {"validation": (0, [])}])
def test_shards_without_held_out_products_have_no_validation(told, monkeypatch, splits) -> None:
    manifest_of(monkeypatch, train=(9, [5]), **splits)
    opened = sources.open_sources(run_config(), "shards", "tokenizer")
    assert opened.validation is None and len(told[1]) == 1
    opened.close()
    assert told[1][0].closed == 1


@pytest.mark.parametrize(("more", "rank", "expected"), [(0, 0, "full"), (1, 0, "size"), (0, 1, "size")])
def test_rank_0_hashes_shards_of_up_to_a_gibibyte_in_all(told, monkeypatch, more, rank, expected) -> None:
    manifest_of(monkeypatch, train=(9, [GIBIBYTE // 2, GIBIBYTE // 4]), validation=(9, [GIBIBYTE // 4 + more]))
    monkeypatch.setattr(sources.distributed, "rank", lambda: rank)
    sources.open_sources(run_config(), "shards", "tokenizer")
    assert [reader.options for reader in told[0]] == [{"verify": expected}] * 2


def test_a_validation_batch_that_the_ranks_do_not_divide_is_an_error_on_all(told, monkeypatch) -> None:
    manifest_of(monkeypatch, train=(9, [5]), validation=(1, [5]))
    ranks = RanksAsThreads(monkeypatch, 3)
    run = run_config("train.validation_batch_size=16")
    errors = ranks.run(lambda _: sources.open_sources(run, "shards", "tokenizer"))
    assert all("train.validation_batch_size 16 is not a multiple of the 3 ranks" in str(error) for error in errors)
    run = run_config("train.validation_batch_size=18")
    assert ranks.run(lambda _: sources.open_sources(run, "shards", "tokenizer").categories) == [("a", "b")] * 3


def test_a_damaged_shard_that_rank_0_finds_stops_all(told, monkeypatch) -> None:
    manifest_of(monkeypatch, train=(9, [5]))
    ranks = RanksAsThreads(monkeypatch, 2)

    def reader(*_, verify):
        if verify == "full":
            raise CorruptShardError("000000.tar: other bytes")

    monkeypatch.setattr(sources, "ShardReader", reader)
    errors = ranks.run(lambda _: sources.open_sources(run_config(), "shards", "tokenizer"))
    assert [type(error) for error in errors] == [CorruptShardError, RankError]
    assert [str(error) for error in errors] == ["000000.tar: other bytes"] * 2
