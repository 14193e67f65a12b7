"""Embeddings of real shards: one row a product, resumable, the same whoever makes them."""

import dataclasses

import numpy as np
import pytest
import torch

from m5ds.data.shards.reader import ShardReader
from m5ds.downstream.embed import evaluation_data
from m5ds.downstream.embed.embeddings import read_embeddings, shard_path
from m5ds.downstream.embed.encoding import Request, encode_split, with_policy, write_embeddings
from m5ds.downstream.embed.evaluation_data import EvaluationData, damage_files, use_file
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.presence import with_modalities
from m5ds.downstream.embed.pretrained import export_pretrained, fingerprint, load_pretrained, load_weights
from m5ds.model.objectives.classification import ClassifierHead

NAMES = ("image", "text", "table", "video", "audio")
ALL = FeatureOptions(modalities=NAMES)


@pytest.fixture(scope="module")
def pretrained(exported):
    return load_pretrained(exported)


@pytest.fixture
def data(shards, pretrained):
    return open_data(shards, pretrained)


def open_data(shards, pretrained, **options):
    options = {"batch_size": 8} | options
    return EvaluationData(str(shards), "train", pretrained.model.spec, pretrained.tokenizer, **options)


def ids_of(shards):
    reader = ShardReader(shards, "train")
    return [name for shard in range(len(reader.shards)) for name in reader.index(shard).table["id"].to_pylist()]


def test_every_product_has_exactly_one_row_in_the_shards_order(tmp_path, shards, pretrained, data):
    assert write_embeddings(pretrained, data, ALL, tmp_path, shard_size=16) == 3
    found = read_embeddings(tmp_path)
    assert list(found.ids) == ids_of(shards)
    assert np.allclose(np.linalg.norm(found.vector_ND[~found.empty_N], axis=1), 1, atol=1e-5)
    assert (found.label_N >= 0).all() and all(found.group)
    reader = ShardReader(shards, "train")
    declared = reader.read(0, 3)
    assert found.group[3] == declared.group
    assert {name for name, has in zip(NAMES, found.present_NM[3], strict=True) if has} <= declared.present


def test_a_killed_job_writes_only_what_is_missing_and_the_same_bytes(tmp_path, pretrained, data, shards):
    write_embeddings(pretrained, data, ALL, tmp_path, shard_size=16)
    whole = [shard_path(tmp_path, n).read_bytes() for n in range(3)]
    stamp = shard_path(tmp_path, 0).stat().st_mtime_ns
    shard_path(tmp_path, 1).unlink()
    assert write_embeddings(pretrained, open_data(shards, pretrained), ALL, tmp_path, shard_size=16) == 1
    assert [shard_path(tmp_path, n).read_bytes() for n in range(3)] == whole
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == stamp


def test_memory_and_files_hold_the_same_vectors(tmp_path, pretrained, data):
    write_embeddings(pretrained, data, ALL, tmp_path, shard_size=16)
    memory = encode_split(pretrained, data, [Request(options=ALL)])[0]
    np.testing.assert_array_equal(memory.vector_ND, read_embeddings(tmp_path).vector_ND)


def test_a_batch_kept_in_memory_serves_every_request_alike(pretrained, data, monkeypatch, shards):
    first = encode_split(pretrained, data, [Request(options=ALL)])[0]
    monkeypatch.setattr(EvaluationData, "_make", lambda *_: pytest.fail("decoded twice"))
    again = encode_split(pretrained, data, [Request(options=ALL)])[0]
    np.testing.assert_array_equal(first.vector_ND, again.vector_ND)
    monkeypatch.undo()
    monkeypatch.setattr(evaluation_data, "KEPT_BYTES", 0)
    small = open_data(shards, pretrained)
    np.testing.assert_array_equal(encode_split(pretrained, small, [Request(options=ALL)])[0].vector_ND, first.vector_ND)
    assert not small._kept


def test_vectors_do_not_depend_on_batches_or_threads(pretrained, data, shards):
    one = encode_split(pretrained, data, [Request(options=ALL)])[0]
    other = encode_split(pretrained, open_data(shards, pretrained, batch_size=5, num_threads=3), [Request(options=ALL)])
    assert one.ids == other[0].ids
    np.testing.assert_allclose(one.vector_ND, other[0].vector_ND, atol=1e-5)


def test_requests_share_a_pass_and_see_their_own_modalities(pretrained, data):
    text = FeatureOptions(modalities=("text",))
    variant = Request(options=ALL, variant=lambda batch: with_modalities(batch, ("text",)))
    subset, whole, lost = encode_split(pretrained, data, [Request(options=text), Request(options=ALL), variant])
    np.testing.assert_allclose(subset.vector_ND, lost.vector_ND, atol=1e-6)
    assert not np.allclose(subset.vector_ND, whole.vector_ND, atol=1e-3)
    assert lost.present_NM[:, [0, 2, 3, 4]].sum() == 0
    assert subset.info.modalities == ("text",)


def test_another_file_of_a_product_is_shown_or_the_modality_is_absent(pretrained, data, shards):
    reader = ShardReader(shards, "train")
    product = reader.read(0, 0)
    assert use_file(7)(product).media == {}
    assert use_file(7)(product).present == product.present - set(product.media)
    assert use_file(0)(product).media == {name: files[:1] for name, files in product.media.items()}


def test_damaged_files_become_absences_keyed_by_product(pretrained, shards):
    half, all_lost = (
        encode_split(
            pretrained, open_data(shards, pretrained, transform=damage_files(share, 0)), [Request(options=ALL)]
        )[0]
        for share in (0.5, 1.0)
    )
    clean = encode_split(pretrained, open_data(shards, pretrained), [Request(options=ALL)])[0]
    media = [0, 3, 4]
    assert clean.present_NM[:, media].sum() > half.present_NM[:, media].sum() > all_lost.present_NM[:, media].sum()
    np.testing.assert_array_equal(clean.present_NM[:, [1, 2]], all_lost.present_NM[:, [1, 2]])
    with pytest.raises(ValueError, match="share of damaged files"):
        damage_files(1.5, 0)


def test_policies_stand_side_by_side_and_leave_the_model_as_it_was(pretrained, data):
    requests = [Request(options=FeatureOptions(modalities=("text", "image")))]
    drop = encode_split(pretrained, data, requests)[0]
    other = with_policy(pretrained, "zeros")
    assert (pretrained.model.spec.absent, other.model.spec.absent) == ("drop", "zeros")
    zeros = encode_split(other, data, requests)[0]
    again = encode_split(pretrained, data, requests)[0]
    assert [p.data_ptr() for p in other.model.parameters()] == [p.data_ptr() for p in pretrained.model.parameters()]
    assert other.fingerprint == pretrained.fingerprint
    np.testing.assert_array_equal(drop.vector_ND, again.vector_ND)
    assert not np.allclose(drop.vector_ND, zeros.vector_ND, atol=1e-4)
    with pytest.raises(ValueError, match="trained with it"):
        with_policy(pretrained, "token")


def test_embeddings_of_another_model_do_not_mix(tmp_path, exported, pretrained, data):
    write_embeddings(pretrained, data, ALL, tmp_path, shard_size=16)
    other = load_pretrained(exported)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    object.__setattr__(other, "fingerprint", fingerprint(other.model, None))
    with pytest.raises(ValueError, match="holds embeddings with model"):
        write_embeddings(other, data, ALL, tmp_path, shard_size=16)


def test_an_exported_model_comes_back_with_its_fingerprint(exported, pretrained):
    assert load_pretrained(exported).fingerprint == pretrained.fingerprint
    assert not pretrained.model.training
    untrained = load_pretrained(exported, untrained=True)
    assert untrained.fingerprint == pretrained.fingerprint  # it was never trained
    assert "initial weights" in untrained.source


def test_an_export_with_a_classifiers_head_comes_back_whole(pretrained, tmp_path):
    head = ClassifierHead(5 * 16, 6, 3, dropout=0.1).eval()
    whole = dataclasses.replace(pretrained, head=head, fingerprint=fingerprint(pretrained.model, head))
    export_pretrained(whole, tmp_path / "out")
    found = load_pretrained(tmp_path / "out")
    assert found.fingerprint == whole.fingerprint != pretrained.fingerprint
    assert found.head is not None
    vectors = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(found.head.logits(vectors), head.logits(vectors))


def test_weights_that_do_not_fit_are_named(pretrained):
    weights = dict(pretrained.model.state_dict())
    tied, source = next(iter(pretrained.model._tied_weights_keys.items()))
    with pytest.raises(ValueError, match="belongs to another model"):
        load_weights(pretrained.model, {**weights, "extra": torch.ones(1)}, "here")
    torn = {**weights, tied: weights[tied] + 1}
    with pytest.raises(ValueError, match="here: tied weights .* differ"):
        load_weights(pretrained.model, torn, "here")
    weights.pop(tied)
    load_weights(pretrained.model, weights, "here")
    assert dict(pretrained.model.named_parameters(remove_duplicate=False))[tied] is pretrained.model.get_parameter(
        source
    )


@pytest.mark.parametrize("content", [None, "{}", '{"model_type": "bert"}'])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run"
    if content is not None:
        path.mkdir()
        (path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="no such checkpoint|model_type must be m5mmt") as error:
        load_pretrained(path)
    assert "\n" not in str(error.value)


def test_a_run_without_a_complete_checkpoint_says_why(tmp_path):
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    with pytest.raises(ValueError, match="no complete checkpoint .*step-00000004.*did not finish"):
        load_pretrained(tmp_path)


def test_a_split_that_is_not_there_is_refused(pretrained, shards):
    with pytest.raises(ValueError, match="no split 'nowhere'; they have train, validation"):
        EvaluationData(str(shards), "nowhere", pretrained.model.spec, pretrained.tokenizer)
