"""A run's checkpoint read back, its untrained twin, and what is refused, without DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch
from downstream_examples import tiny_run

from m5ds.data.catalogue.quickstart import TOKENIZER
from m5ds.data.tokenizer import load_tokenizer
from m5ds.downstream.embed import pretrained
from m5ds.downstream.embed.pretrained import fingerprint, load_pretrained, load_weights
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.classification import ClassifierHead


@pytest.fixture
def checkpoint(tmp_path, shards, monkeypatch):
    """A run of seed 7 whose checkpoint holds the weights of seed 8; `looked` lists where one was looked for."""
    run = tiny_run(tmp_path, "seed=7")
    tokenizer = load_tokenizer(shards.parent / TOKENIZER)
    made = SimpleNamespace(looked=[], finetune=None, weights=None)
    made.initial, made.trained = (
        M5ForPretraining(M5Config.for_tokenizer(run.model, tokenizer, initializer_seed=seed)) for seed in (7, 8)
    )
    made.weights = made.trained.state_dict()
    folder = tmp_path / "run" / "checkpoints" / "step-00000003"
    tokenizer.save(folder / "tokenizer")
    made.path, made.folder = tmp_path / "run", folder

    def find(path):
        made.looked.append(path)
        state = {"config": run.to_dict(), "step": 3} | ({"finetune": made.finetune} if made.finetune else {})
        return SimpleNamespace(root=folder.parent, tag=folder.name, state=state), []

    def consolidate(root, tag):
        assert (root, tag) == (folder.parent, folder.name)
        return dict(made.weights)

    monkeypatch.setattr(pretrained.checkpoint, "find", find)
    monkeypatch.setattr(pretrained, "consolidate", consolidate)
    return made


def test_a_runs_checkpoint_holds_its_weights_and_its_twin_the_initial_ones(checkpoint):
    found = load_pretrained(checkpoint.path)
    assert found.fingerprint == fingerprint(checkpoint.trained, None)
    assert not found.model.training and found.head is None and found.source == str(checkpoint.folder)
    assert found.state["step"] == 3 and found.run == found.state["config"]
    assert found.tokenizer.vocab_size == load_tokenizer(checkpoint.folder / "tokenizer").vocab_size
    twin = load_pretrained(str(checkpoint.path), untrained=True)
    assert twin.fingerprint == fingerprint(checkpoint.initial, None) != found.fingerprint
    assert twin.source == f"{checkpoint.folder} (initial weights)" and twin.head is None and not twin.model.training
    assert checkpoint.looked == [checkpoint.path] * 2


def test_a_classifiers_head_comes_with_its_encoder_and_the_best_checkpoint_goes_first(checkpoint):
    head = ClassifierHead(80, 6, 3, dropout=0.0)
    prefix = "objectives.classification.head."
    checkpoint.weights = checkpoint.weights | {prefix + name: value for name, value in head.state_dict().items()}
    checkpoint.finetune = {"lora_rank": 1, "lora_alpha": 1.0}
    (checkpoint.path / "best" / "checkpoints").mkdir(parents=True)
    found = load_pretrained(checkpoint.path)
    assert checkpoint.looked == [checkpoint.path / "best"]
    assert torch.equal(found.head.output.weight, head.output.weight) and not found.head.training
    assert (found.head.dense.in_features, found.head.dense.out_features, found.head.output.out_features) == (80, 6, 3)
    assert found.fingerprint == fingerprint(checkpoint.trained, head)


def test_a_folder_whose_checkpoints_are_all_damaged_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained.checkpoint, "find", lambda path: (None, ["step-1: torn", "step-0: torn too"]))
    with pytest.raises(ValueError, match=r"holds no complete checkpoint \(step-1: torn\); name a run's folder"):
        load_pretrained(tmp_path)


def test_weights_load_strictly_and_tied_ones_agree(checkpoint):
    model, weights = checkpoint.initial, checkpoint.weights
    load_weights(model, weights, "w")
    assert fingerprint(model, None) == fingerprint(checkpoint.trained, None)
    name = "blocks.cross_0.ffn.audio.fc2.bias"
    for wrong, message in (
        ({name: torch.zeros(3)}, rf"^w: weight {name} has shape \(3,\), the model needs \(16,\)"),
        ({"aaa": torch.zeros(2), name: torch.zeros(3)}, r"^w: weight aaa has shape \(2,\), the model needs none"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(model, weights | wrong, "w")
    with pytest.raises(ValueError, match=rf"^w: weight {name} has shape none"):
        load_weights(model, {key: value for key, value in weights.items() if key != name}, "w")
    tied = dict(model._tied_weights_keys)
    assert tied
    for copy, source in tied.items():
        with pytest.raises(ValueError, match=f"tied weights {copy} and {source} differ"):
            load_weights(model, weights | {copy: weights[source] + 1}, "w")
        load_weights(model, {key: value for key, value in weights.items() if key != copy}, "w")
        assert torch.equal(model.state_dict()[copy], weights[source])
    assert set(weights) >= set(tied)


def test_each_rank_of_a_machine_reads_in_its_turn(monkeypatch):
    from deepspeed.utils import zero_to_fp32

    events = []

    def read(root, *, tag):
        events.append(("read", root, tag))
        print("noise")
        return {"a": torch.ones(2, 3, dtype=torch.bfloat16).T}

    monkeypatch.setattr(zero_to_fp32, "get_fp32_state_dict_from_zero_checkpoint", read)
    monkeypatch.setattr(pretrained.distributed, "world_size", lambda: 3)
    monkeypatch.setattr(pretrained.distributed, "rank", lambda: 1)
    monkeypatch.setattr(pretrained.distributed, "barrier", lambda: events.append("barrier"))
    weights = pretrained.consolidate("root", "tag")
    assert events == ["barrier", ("read", "root", "tag"), "barrier", "barrier"]
    assert weights["a"].dtype == torch.float32 and weights["a"].is_contiguous() and weights["a"].shape == (3, 2)
