"""Saving, finding and loading a checkpoint, on one rank and dealt over ranks, with a stub for DeepSpeed's engine."""

import random
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks_as_threads import RanksAsThreads

from m5ds.train.checkpoints import checkpoint, tags


class Engine:
    """Writes one file a rank, as DeepSpeed does, and remembers what it was asked."""

    def __init__(self, rank=lambda: 0) -> None:
        self.rank, self.saves, self.loads = rank, [], []
        self.path: str | None = "somewhere"
        self.on_load = lambda: None

    def save_checkpoint(self, root: str, **options) -> None:
        self.saves.append((root, options))
        (Path(root) / options["tag"] / f"zero_{self.rank()}.pt").write_bytes(b"z" * 5)

    def load_checkpoint(self, root: str, **options):
        self.loads.append((root, options))
        self.on_load()
        return self.path, {}


def save(root: Path, step: int, engine=None, keep: int = 3, extras=lambda folder: None) -> str:
    state = {"step": step, "name": "台灯"}
    return checkpoint.save(engine or Engine(), root, state, keep=keep, write_extras=extras)


def test_a_save_is_complete_and_holds_state_random_states_and_extras(tmp_path) -> None:
    engine = Engine()
    tag = save(tmp_path, 12, engine, extras=lambda folder: (folder / "vocab.txt").write_text("extra"))
    assert tag == "step-00000012"
    state = {"step": 12, "name": "台灯"}
    assert engine.saves == [(str(tmp_path), {"tag": tag, "client_state": {"m5ds": state}, "save_latest": False})]
    assert list(tags.read(tmp_path, tag).files) == ["random_00000.pt", "state.json", "vocab.txt", "zero_0.pt"]
    text = (tmp_path / tag / "state.json").read_text(encoding="utf-8")
    assert text == '{\n "step": 12,\n "name": "台灯"\n}', "a line a key, readable"
    found, skipped = checkpoint.find(tmp_path / tag)
    assert found == checkpoint.SavedCheckpoint(root=tmp_path, tag=tag, state=state) and skipped == []


def test_a_save_replaces_what_an_earlier_one_of_that_step_left(tmp_path) -> None:
    (tmp_path / "step-00000012").mkdir()
    (tmp_path / "step-00000012/stale.pt").touch()
    assert "stale.pt" not in tags.read(tmp_path, save(tmp_path, 12)).files


def test_the_newest_are_kept(tmp_path, monkeypatch) -> None:
    clock = iter(range(100, 200))
    monkeypatch.setattr(checkpoint.time, "time", lambda: float(next(clock)))
    for step in (30, 10, 20):
        save(tmp_path, step, keep=2)
    kept, _ = tags.newest_first(tmp_path)
    assert [(tag.name, tag.created) for tag in kept] == [("step-00000020", 102.0), ("step-00000010", 101.0)]


def test_ranks_write_their_own_files_and_rank_0_the_rest(tmp_path, monkeypatch) -> None:
    ranks = RanksAsThreads(monkeypatch, 3)
    engine, writers, hashed = Engine(ranks.rank), [], []
    describe = tags.describe_files

    def describing(folder, names):
        hashed.append((ranks.rank(), list(names)))
        return describe(folder, names)

    monkeypatch.setattr(checkpoint.tags, "describe_files", describing)
    saved = ranks.run(lambda _: save(tmp_path, 4, engine, extras=lambda folder: writers.append(ranks.rank())))
    assert saved == ["step-00000004"] * 3
    assert writers == [0] and len(engine.saves) == 3
    files = [f"random_{rank:05d}.pt" for rank in range(3)] + ["state.json"] + [f"zero_{rank}.pt" for rank in range(3)]
    assert list(tags.read(tmp_path, "step-00000004").files) == files, "sorted, whoever hashed them"
    shares = dict(hashed)
    assert sorted(name for share in shares.values() for name in share) == files, "each file is hashed once"
    assert sorted(len(share) for share in shares.values()) == [2, 2, 3]


@pytest.mark.parametrize("damaged", range(7))
def test_a_wrong_byte_is_found_whichever_rank_verifies_the_file(tmp_path, monkeypatch, damaged) -> None:
    ranks = RanksAsThreads(monkeypatch, 3)
    ranks.run(lambda _: save(tmp_path / "checkpoints", 4, Engine(ranks.rank)))
    good = ranks.run(lambda _: checkpoint.find(tmp_path))
    assert [(found.tag, skipped) for found, skipped in good] == [("step-00000004", [])] * 3
    folder = tmp_path / "checkpoints/step-00000004"
    path = folder / sorted(tags.read(folder.parent, folder.name).files)[damaged]
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    found = ranks.run(lambda _: checkpoint.find(tmp_path))
    assert found == [(None, [f"{path}: its bytes do not match its manifest"])] * 3


def test_where_a_path_points() -> None:
    run = Path("runs/q")
    assert checkpoint.locate(run) == (run / "checkpoints", None)
    assert checkpoint.locate(run / "checkpoints") == (run / "checkpoints", None)
    assert checkpoint.locate(run / "checkpoints/step-00000003") == (run / "checkpoints", "step-00000003")


def facts(**changes) -> dict:
    config = {
        "seed": 0,
        "name": "q",
        "model": {"hidden_size": 8, "blocks": {"a": 1}},
        "train": {"global_batch_size": 8, "log_every": 3},
        "data": {"chunk_size": 4, "window_chunks": 2, "shuffle_pairs": False, "num_threads": 1, "tokenizer": None},
    }
    state = {"config": config, "world_size": 2, "zero_stage": 3, "manifest_hash": "abc", "precision": "bf16"}
    for key, value in changes.items():
        *parents, last = key.split("__")
        tree = state
        for part in parents:
            tree = tree[part]
        tree[last] = value
    return state


def check(saved: dict, now: dict, world_size: int = 2) -> list[str]:
    return checkpoint.check_same_run(checkpoint.SavedCheckpoint(root=Path("r"), tag="t", state=saved), now, world_size)


@pytest.mark.parametrize(
    "key", ["seed", "train.global_batch_size", "data.chunk_size", "data.window_chunks", "data.shuffle_pairs"]
)
def test_what_decides_the_order_of_the_data_must_stay(key) -> None:
    changed = {f"config__{key.replace('.', '__')}": 99}
    with pytest.raises(ValueError, match=rf"^r/t: {key} was .* and is 99 in this run"):
        check(facts(), facts(**changed))


def test_every_key_of_the_model_must_stay() -> None:
    for changed in ({"config__model__hidden_size": 16}, {"config__model__new": 1}, {"config__model__blocks": {}}):
        with pytest.raises(ValueError, match=r"r/t: model\..* the same value is needed to resume"):
            check(facts(), facts(**changed))


def test_a_checkpoint_of_the_layout_before_objectives_is_refused_by_one_line() -> None:
    older = facts(config__model__contrastive={"pairs": "all"}, code_version="abc123")
    with pytest.raises(ValueError, match=r"^r/t was saved by a version \(abc123\) whose losses .* --resume none$"):
        check(older, facts())


def test_other_differences_are_told_with_both_values_and_those_of_either_side() -> None:
    now = facts(config__name="p", config__train__log_every=5, config__data__tokenizer={"path": "x"})
    now["config"]["more"] = {"a": 1}
    del now["config"]["data"]["num_threads"]
    assert check(facts(), now) == [
        "name: 'q' -> 'p'",
        "train.log_every: 3 -> 5",
        "data.num_threads: 1 -> None",
        "data.tokenizer: None -> {'path': 'x'}",
        "more: None -> {'a': 1}",
    ]


@pytest.mark.parametrize(("key", "value"), [("manifest_hash", "x"), ("zero_stage", 2), ("precision", "fp16")])
def test_data_stage_and_precision_must_stay(key, value) -> None:
    with pytest.raises(ValueError, match=rf"^r/t: {key} was .* and is {value} in this run; .* --resume none"):
        check(facts(), facts(**{key: value}))


@pytest.mark.parametrize(("saved", "now"), [(2, 2), (2, 3), (3, 2)])
def test_only_a_stage_3_checkpoint_under_stage_3_goes_to_other_ranks(saved, now) -> None:
    with pytest.raises(ValueError, match=rf"r/t was saved by 2 ranks under ZeRO-{saved} and this run has 4: .* 2$"):
        check(facts(zero_stage=saved), facts(zero_stage=now), 4)
    assert check(facts(), facts(), 4) == []


def drawn() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


@pytest.fixture
def seeded():
    """The generators of the test process are put back."""
    before = checkpoint._random_state()
    yield
    random.setstate(before["python"])
    np.random.set_state(before["numpy"])  # noqa: NPY002
    torch.set_rng_state(before["torch"])


def test_a_load_puts_back_all_random_states(tmp_path, seeded) -> None:
    engine = Engine()
    tag = save(tmp_path, 1)
    expected = drawn()
    drawn()
    found = checkpoint.SavedCheckpoint(root=tmp_path, tag=tag, state={})
    checkpoint.load(engine, found)
    assert engine.loads == [(str(tmp_path), {"tag": tag})]
    assert drawn() == expected


def test_each_rank_takes_its_own_random_states(tmp_path, monkeypatch) -> None:
    read, lock = {}, threading.Lock()
    ranks = RanksAsThreads(monkeypatch, 2)
    ranks.run(lambda _: save(tmp_path, 1, Engine(ranks.rank)))

    def load(path, **options):
        with lock:
            read[ranks.rank()] = path
        return torch_load(path, **options)

    torch_load = torch.load
    monkeypatch.setattr(checkpoint.torch, "load", load)
    found = checkpoint.SavedCheckpoint(root=tmp_path, tag="step-00000001", state={})
    assert ranks.run(lambda _: checkpoint.load(Engine(), found)) == [None, None]
    assert read == {rank: tmp_path / f"step-00000001/random_0000{rank}.pt" for rank in range(2)}


def test_the_gpus_random_state_is_kept_where_there_is_one(tmp_path, monkeypatch, seeded) -> None:
    put = []
    state = torch.tensor([1, 2, 3], dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put.append)
    assert "cuda" not in checkpoint._random_state()
    on_cpu = checkpoint.SavedCheckpoint(root=tmp_path, tag=save(tmp_path, 1), state={})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checkpoint.load(Engine(), on_cpu)
    assert put == [], "a checkpoint of a CPU has none"
    on_gpu = checkpoint.SavedCheckpoint(root=tmp_path, tag=save(tmp_path, 2), state={})
    checkpoint.load(Engine(), on_gpu)
    assert [found.tolist() for found in put] == [[1, 2, 3]]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint.load(Engine(), on_gpu)
    assert len(put) == 1


def test_a_universal_copy_keeps_each_groups_decay_and_gives_each_parameter_its_own_counter(tmp_path) -> None:
    """DeepSpeed loads one group's settings into all, and one counter that every parameter's update advances."""
    engine = Engine()
    shared = torch.tensor(7.0)
    groups = [{"weight_decay": 0.25, "lr": 1.0}, {"weight_decay": 0.0, "lr": 1.0}]
    states = {"a": {"step": shared}, "b": {"step": shared}, "c": {"step": 7}, "d": {}}
    engine.optimizer = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups, state=states))

    def one_for_all() -> None:
        for group in groups:
            group["weight_decay"] = 0.25

    engine.on_load = one_for_all
    found = checkpoint.SavedCheckpoint(root=tmp_path, tag="step-00000001", state={})
    checkpoint.load(engine, found, "universal-step-00000001")  # random states are left alone: there are none here
    assert engine.loads == [(str(tmp_path), {"tag": "universal-step-00000001"})]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    states["a"]["step"] += 1
    assert (states["a"]["step"].item(), states["b"]["step"].item(), states["c"], states["d"]) == (8, 7, {"step": 7}, {})
