"""tools/embed.py from its arguments to the line that it prints, and the sets it writes."""

from types import SimpleNamespace

import numpy as np
import pytest
from downstream_examples import NAMES, embedding_set

from m5ds.downstream.embed import command as embed_command
from m5ds.downstream.embed import embeddings, encoding, evaluation_data
from m5ds.downstream.embed import pretrained as pretraining
from m5ds.downstream.embed.embeddings import EmbeddingInfo, check_comparable, check_modalities, id_order, start_writing
from m5ds.train import distributed, runtime


def test_flags_have_their_documented_defaults():
    assert vars(embed_command.parse(["--checkpoint", "c", "--out", "o"])) == {
        "checkpoint": "c",
        "shards": None,
        "untrained": False,
        "traceback": False,
        "local_rank": 0,
        "out": "o",
        "split": "test",
        "modalities": None,
        "states": "fused",
        "operation": None,
        "unnormalized": False,
        "batch_size": 32,
        "num_threads": 1,
        "shard_size": 1024,
        "plugin": [],
    }
    with pytest.raises(ValueError, match="--out"):
        embed_command.parse(["--checkpoint", "c"])


@pytest.fixture
def embed(monkeypatch):
    """Runs the command over recorders."""
    calls = []
    model = SimpleNamespace(names=NAMES, spec="spec")
    loaded = SimpleNamespace(model=model, tokenizer="tok", state={"shards": "own"})
    monkeypatch.setattr(runtime, "start_process_group", lambda: calls.append("start"))
    monkeypatch.setattr(runtime, "end_process_group", lambda: calls.append("end"))
    monkeypatch.setattr(
        pretraining, "load_pretrained", lambda path, *, untrained: calls.append((path, untrained)) or loaded
    )
    monkeypatch.setattr(evaluation_data, "EvaluationData", lambda *given, **options: (given, options))

    def write(pretrained, data, options, out, shard_size):
        calls.append((data, options, str(out), shard_size))
        return 2

    monkeypatch.setattr(encoding, "write_embeddings", write)
    info = embedding_set(np.eye(3), modalities=("text", "table"), shard_size=1).info
    monkeypatch.setattr(embeddings, "read_info", lambda out: info)

    def run(*words):
        calls.clear()
        assert embed_command._run(embed_command.parse(["--checkpoint", "c", "--out", "o", *words])) == 0
        return calls

    return run


def test_everything_is_embedded_by_the_defaults(embed, capsys):
    start, loaded, (data, options, out, shard_size), end = embed()
    assert (start, loaded, end) == ("start", ("c", False), "end")
    assert data == (("own", "test", "spec", "tok"), {"batch_size": 32, "num_threads": 1})
    assert (options.modalities, options.states, options.operation, options.normalized) == (NAMES, "fused", "mean", True)
    assert (out, shard_size) == ("o", 1024)
    line = "o: 3 products of split test, 3 wide (fused mean of text+table); wrote 2 of 3 files\n"
    assert capsys.readouterr().out == line


def test_every_flag_reaches_its_place(embed, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    words = "--untrained --shards s --split train --modalities table,image, --states contrastive --operation sum"
    _, loaded, (data, options, _, shard_size), _ = embed(
        *words.split(), "--unnormalized", *["--batch-size", "1", "--num-threads", "1", "--shard-size", "1"]
    )
    assert loaded == ("c", True) and data == (("s", "train", "spec", "tok"), {"batch_size": 1, "num_threads": 1})
    assert (options.modalities, options.states, options.operation, options.normalized) == (
        ("image", "table"), "contrastive", "sum", False
    )  # fmt: skip
    assert shard_size == 1 and capsys.readouterr().out == ""
    assert embed("--states", "dense")[2][1].operation == "concat"
    with pytest.raises(ValueError, match="command line: plugins: 'none.py' cannot be imported"):
        embed("--plugin", "none.py")
    assert embed("--num-threads", "4", "--batch-size", "5")[2][0][1] == {"batch_size": 5, "num_threads": 4}


@pytest.mark.parametrize("flag", ["--batch-size", "--num-threads", "--shard-size"])
def test_counts_below_one_are_refused_before_anything_starts(embed, flag):
    with pytest.raises(ValueError, match=f"{flag} must be at least 1, got 0"):
        embed(flag, "0")


def info(**changes):
    return embedding_set(np.eye(2), **changes).info


def test_files_are_as_many_as_the_products_fill():
    for products, size, files in ((0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2)):
        assert info(num_products=products, shard_size=size).num_shards == files
    fields = EmbeddingInfo.__dataclass_fields__
    assert (fields["shard_size"].default, fields["states"].default) == (1024, "fused")
    for key, value in (("states", "raw"), ("operation", "max")):
        with pytest.raises(ValueError, match=f"{key} must be one of"):
            info(**{key: value})
    with pytest.raises(ValueError, match="modality 'smell'"):
        info(modalities=("smell",))


def test_sets_keep_rows_together_whatever_is_taken():
    present = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    whole = embedding_set(
        np.arange(6.0).reshape(3, 2), [7, 8, 9], ids=["c", "a", "b"], present_NM=present, group=["x", "y", "z"],
        modalities=("image",),
    )  # fmt: skip
    assert whole.empty_N.tolist() == [False, True, True] and len(whole) == 3
    for rows, order in ((np.array([2, 0]), [2, 0]), (np.array([True, False, True]), [0, 2])):
        part = whole.take(rows)
        assert (part.info.num_products, part.ids) == (2, tuple(whole.ids[i] for i in order))
        assert part.vector_ND.tolist() == whole.vector_ND[order].tolist()
        assert part.label_N.tolist() == whole.label_N[order].tolist()
        assert part.present_NM.tolist() == present[order].tolist()
        assert part.group == tuple(whole.group[i] for i in order)
    assert whole.by_id().ids == ("a", "b", "c") and id_order(["b", "a", "c"]).tolist() == [1, 0, 2]


def test_sets_of_one_space_compare():
    check_comparable(info(), info(modalities=("text",), data="other", split="other"))
    one, other = ({"operation": "concat", "modalities": (name,)} for name in ("image", "text"))
    with pytest.raises(ValueError, match="concatenated embeddings of image and text share no modality"):
        check_comparable(info(**one), info(**other))
    dense = {"states": "dense"}
    check_comparable(info(**one, **dense), info(**other, **dense))
    check_comparable(info(**one), info(operation="concat", modalities=("image", "text")))
    for change in ({"states": "contrastive"}, {"operation": "sum"}, {"normalized": True}):
        with pytest.raises(ValueError, match=f"embeddings differ in {next(iter(change))}"):
            check_comparable(info(), info(**change))
    with pytest.raises(ValueError, match="differ in width"):
        check_comparable(info(), embedding_set(np.eye(3)).info)


def test_subsets_are_named_with_the_key_that_asked():
    assert check_modalities(["table", "image"], NAMES) == ("image", "table")
    with pytest.raises(ValueError, match="^modality subset is empty"):
        check_modalities([], NAMES)
    with pytest.raises(ValueError, match="^key: modality 'smell' is not"):
        check_modalities(["image", "smell"], NAMES, "key")


def test_a_folder_is_continued_only_by_the_same_embeddings(tmp_path):
    made = info(num_products=9, shard_size=4)
    assert start_writing(tmp_path / "a" / "b", made) == [0, 1, 2]
    embeddings.shard_path(tmp_path / "a" / "b", 1).write_bytes(b"")
    assert start_writing(tmp_path / "a" / "b", made) == [0, 2]
    assert embeddings.read_info(tmp_path / "a" / "b") == made
    text = (tmp_path / "a" / "b" / "embeddings.json").read_text()
    assert text.startswith('{\n "model": "weights-a",\n') and text.endswith("\n}\n")
    with pytest.raises(ValueError, match="holds embeddings with split 'test', not 'train'"):
        start_writing(tmp_path / "a" / "b", info(num_products=9, shard_size=4, split="train"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; choose a folder for --out"):
        start_writing(tmp_path / "file", made)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["000001.parquet", "embeddings.json"]
