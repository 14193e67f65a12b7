"""The loader end to end: synthetic catalogue, real shards, real decoders, real tokenizer."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from loader_cases import DATA, INPUTS, G, products, step_products, take

from m5ds import modality
from m5ds.config import ModalityConfig
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.batches.order import Order, deal
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import CorruptShardError
from m5ds.data.shards.reader import ShardReader
from m5ds.data.tokenizer import load_tokenizer, train_tokenizer
from m5ds.inputs import (
    FeatureRows,
    RegionFeatures,
    TextTokens,
)
from m5ds.kernels.common.philox import EVALUATION_DRAW


def test_a_global_batch_is_the_same_whatever_the_world_size_and_accumulation(make):
    """Bit for bit: rows, draws and labels of every product (DESIGN section 0)."""
    num_steps = 6  # 72 products of 50: into the second epoch
    expected = [sorted(step_products(step)) for step in take(make(), num_steps)]
    assert {draw for step in expected for _, _, draw, _, _ in step} == {0, 1}
    for world_size, accumulation in ((2, 1), (2, 2), (1, 3)):
        ranks = [
            take(make(world_size=world_size, accumulation=accumulation, rank=rank), num_steps)
            for rank in range(world_size)
        ]
        for k in range(num_steps):
            steps = [rank[k] for rank in ranks]
            assert all(len(step.micro_batches) == accumulation for step in steps)
            assert all(
                batch.num_products == G // world_size // accumulation for step in steps for batch in step.micro_batches
            )
            assert sorted(product for step in steps for product in step_products(step)) == expected[k]


def test_resuming_at_a_position_gives_what_the_uninterrupted_run_gives(make):
    whole = take(make(), 6)
    resumed = take(make(), 3, position=3 * G)
    for one, other in zip(whole[3:], resumed, strict=True):
        assert (one.epoch, one.position) == (other.epoch, other.position)
        assert step_products(one) == step_products(other)


def test_resuming_on_another_world_size_sees_exactly_the_rest(make):
    whole = take(make(), 6)
    rest = [take(make(world_size=2, rank=rank), 4, position=2 * G) for rank in range(2)]
    for k in range(4):
        seen = sorted(product for rank in rest for product in step_products(rank[k]))
        assert seen == sorted(step_products(whole[2 + k]))


def test_every_product_comes_once_in_every_epoch(make):
    loader = make()
    n = loader.num_products
    seen = [(name, draw) for step in take(loader, 2 * n // G) for name, _, draw, _, _ in step_products(step)]
    assert len(set(seen)) == len(seen) == 2 * n // G * G
    assert len({name for name, draw in seen if draw == 0}) == n


def test_rows_do_not_depend_on_who_shares_the_batch(make, prepared, decoder):
    step = take(make(), 1)[0]
    reader, tokenizer = ShardReader(prepared / "shards", "train"), load_tokenizer(prepared / "tokenizer")
    maker = MicroBatchMaker(INPUTS, tokenizer, decoder, seed=5, training=True, modality_dropout=0.1)
    by_id = {product.id: product for product in (reader.read(0, index) for index in range(reader.num_products))}
    for expected in step_products(step):
        alone = maker.make([by_id[expected[0]]], [expected[2]])
        assert products(alone.batch) == [expected]


@pytest.mark.parametrize("options", [{"num_threads": 4}, {"prefetch_steps": 0}, {"prefetch_steps": 5}])
def test_threads_and_prefetching_change_nothing(make, options):
    expected = [step_products(step) for step in take(make(accumulation=2), 4)]
    loader = make(data=replace(DATA, **options), accumulation=2)
    assert [step_products(step) for step in take(loader, 4)] == expected


def test_epochs_and_seeds_change_crops_but_evaluation_never_varies(make):
    def rows_by_id(steps):
        return {product[0]: product[4] for step in steps for product in step_products(step)}

    loader = make(data=replace(DATA, modality_dropout=0.0))
    n = loader.num_products
    epochs = rows_by_id(take(loader, n // G)), rows_by_id(take(loader, n // G, position=n // G * G + G))
    both = set(epochs[0]) & set(epochs[1])
    assert both and sum(epochs[0][name] != epochs[1][name] for name in both) > 0.9 * len(both)
    first, second = (rows_by_id(make(training=False, seed=seed).evaluation_steps()) for seed in (0, 1))
    assert first == second


def test_evaluation_sees_the_split_once_in_order_and_pads_the_last_batch(make):
    reader = make(training=False)._reader
    for world_size in (1, 2):
        ranks = [
            list(make(training=False, world_size=world_size, rank=rank, global_batch_size=16).evaluation_steps())
            for rank in range(world_size)
        ]
        assert len(ranks[0]) == -(-reader.num_products // 16)
        seen, padding = [], 0
        for steps in zip(*ranks, strict=True):
            ids = []
            for batch in (batch for step in steps for batch in step.micro_batches):
                assert batch.num_products == 16 // world_size
                assert (batch.draw_B == EVALUATION_DRAW).all()
                empty_B = torch.tensor([name == "" for name in batch.ids])
                assert not batch.present_BM[empty_B].any()
                assert (batch.label_B[empty_B] == -1).all()
                padding += int(empty_B.sum())
                ids += [name for name in batch.ids if name]
            seen.append(sorted(ids))
        stored = [reader.read(0, index).id for index in range(reader.num_products)]
        assert seen == [sorted(stored[start : start + 16]) for start in range(0, len(stored), 16)]
        assert padding == len(ranks[0]) * 16 - len(stored)


def test_rows_are_dealt_nearly_equally_to_the_ranks(make):
    data = replace(DATA, modality_dropout=0.0)
    loads = [
        [step.micro_batches[0].num_tokens for step in take(make(data=data, world_size=2, rank=rank), 4)]
        for rank in range(2)
    ]
    for one, other in zip(*loads, strict=True):
        assert abs(one - other) < 0.15 * (one + other)


def test_products_are_dealt_by_their_modalities_and_characters(make, prepared):
    """A product costs what its modalities hold at most and a row for each summary; two characters make a token."""
    reader = ShardReader(prepared / "shards", "train")
    loader = make(world_size=2)
    costs = []
    for place in Order(reader.shard_sizes, 5, DATA.chunk_size, DATA.window_chunks).places(G, G):
        product = reader.read(place.shard, place.index)
        characters = {
            "text": len(product.title) + len(product.description),
            "table": sum(len(key) + len(value) for key, value in product.attributes),
        }
        most = {"image": 4, "text": 24, "table": 32, "video": 1, "audio": INPUTS["audio"].max_rows}
        costs.append(
            sum(1 + min(most[name], 1 + characters.get(name, 2 * most[name]) // 2) for name in product.present)
        )
    expected = deal(costs, 2)
    ids = [reader.read(place.shard, place.index).id for place in loader._order.places(G, G)]
    for rank in range(2):
        batch = take(make(world_size=2, rank=rank), 1, position=G)[0].micro_batches[0]
        assert batch.ids == [ids[i] for i in expected[rank]]


def test_steps_say_where_they_are(make):
    loader = make()
    n = loader.num_products
    steps = take(loader, 6)
    assert [step.position for step in steps] == [0, G, 2 * G, 3 * G, 4 * G, 5 * G]
    assert [step.epoch for step in steps] == [position // n for position in range(0, 6 * G, G)]
    assert [len(step.micro_batches) for step in steps] == [1] * 6
    assert take(loader, 0) == []
    evaluation = list(make(training=False).evaluation_steps())
    assert {step.epoch for step in evaluation} == {0}


def test_a_corrupt_shard_stops_the_run_instead_of_becoming_an_absence(make, tmp_path, prepared):
    import shutil

    shards = shutil.copytree(prepared / "shards", tmp_path / "shards")
    loader = make(shards=shards)
    with (shards / "train/000000.tar").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CorruptShardError, match="000000.tar"):
        take(loader, 5)


def test_batches_that_cannot_be_made_are_refused_with_the_remedy(make):
    with pytest.raises(ValueError, match=r"split train has \d+ products, fewer than one train.global_batch_size of 64"):
        make(global_batch_size=64)
    with pytest.raises(ValueError, match="train.global_batch_size 12 must be a multiple of world size 5"):
        make(world_size=5)


def test_precomputed_features_and_a_sixth_modality_are_read(tmp_path, decoder, make):
    """Regions, clip vectors and a modality of the test's own; a damaged feature file is an absence."""
    generator = np.random.default_rng(0)

    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    def npz(**arrays):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    items = []
    for number in range(12):
        boxes = np.array([[0, 0, 10, 20], [5, 5, 50, 40], [0, 0, 100, 50]], np.float32)
        regions = npz(features=generator.normal(size=(3, 8)).astype(np.float32), boxes=boxes, size=np.array([50, 100]))
        files = {
            f"{number}.npz": regions,
            f"{number}.npy": npy(generator.normal(size=(4, 6)).astype(np.float16)),
            f"{number}-smell.npy": b"no array" if number == 0 else npy(np.full((2, 5), number, np.float32)),
        }
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        items.append(
            {
                "id": f"p{number}",
                "title": f"number {number}",
                "smells": [f"{number}-smell.npy"] if number % 2 == 0 else [],
                "features": {"image": f"{number}.npz", "video": f"{number}.npy"},
            }
        )
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    smell = modality.Modality(name="smell", source="array", catalogue_field="smells", task="mom")
    with modality.extended(smell):
        build_shards(tmp_path / "items.jsonl", tmp_path / "shards", BuildOptions(ratios=(1.0, 0.0, 0.0)))
        specs = {
            "smell": FeatureRows(rows=2, dim=5),
            "text": TextTokens(max_tokens=8),
            "image": RegionFeatures(max_regions=2, dim=8),
            "video": FeatureRows(rows=4, dim=6),
        }
        loader = make(
            shards=tmp_path / "shards",
            tokenizer=train_tokenizer(["number 1 2 3 4 5 6 7 8 9 10"] * 20, 280, num_threads=1),
            modalities={name: ModalityConfig(input=spec, embedder="any", head="any") for name, spec in specs.items()},
            data=replace(DATA, modality_dropout=0.0),
        )
        step = take(loader, 1)[0]
    batch = step.micro_batches[0]
    assert list(batch.modalities) == ["image", "text", "video", "smell"]
    assert batch.modalities["image"].length_B.tolist() == [2] * 12
    assert batch.modalities["image"].geometry_N5[1].tolist() == pytest.approx([0.05, 0.1, 0.5, 0.8, 0.45 * 0.7])
    assert batch.modalities["video"].values_NF.shape == (48, 6)
    smelling = {name: present for name, present in zip(batch.ids, batch.present_BM[:, 3].tolist(), strict=True)}
    assert smelling == {f"p{number}": number % 2 == 0 and number > 0 for number in range(12)}
    assert [bad.product_id for bad in step.bad_media] == ["p0"]
    assert sorted(set(batch.modalities["smell"].values_NF[:, 0].tolist())) == [2.0, 4.0, 6.0, 8.0, 10.0]
