"""The loader end to end: synthetic catalogue, real shards, real decoders, real tokenizer."""

import gc
import io
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from m5ds import modality
from m5ds.config import DataConfig, ModalityConfig, TokenizerConfig
from m5ds.data.batches.loader import Loader
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.batches.order import Order, deal
from m5ds.data.batches.prefetch import THREADS
from m5ds.data.catalogue.quickstart import prepare_quickstart
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.build import BuildOptions, build_shards
from m5ds.data.shards.manifest import CorruptShardError
from m5ds.data.shards.reader import Media, ShardReader
from m5ds.data.tokenizer import load_tokenizer, train_tokenizer
from m5ds.inputs import (
    AudioPatches,
    FeatureRows,
    ImagePatches,
    RegionFeatures,
    TablePairs,
    TextTokens,
    VideoTubes,
)
from m5ds.kernels.common.philox import EVALUATION_DRAW

INPUTS = {
    "image": ImagePatches(size=24, patch=12),
    "text": TextTokens(max_tokens=24),
    "table": TablePairs(max_tokens=32),
    "video": VideoTubes(frames=2, size=16, patch=16),
    "audio": AudioPatches(seconds=0.6, num_mels=20, patch_mels=20),
}
MODALITIES = {name: ModalityConfig(input=spec, embedder="any", head="any") for name, spec in INPUTS.items()}
DATA = DataConfig(
    quickstart_products=60,
    tokenizer=TokenizerConfig(vocab_size=600),
    chunk_size=4,
    window_chunks=3,
    modality_dropout=0.1,
)
G = 12


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


def products(batch):
    """Everything the model sees of each product, as comparable values, in batch order."""
    starts = dict.fromkeys(batch.modalities, 0)
    seen = []
    for b, name in enumerate(batch.ids):
        rows = {}
        for m, (modality_name, packed) in enumerate(batch.modalities.items()):
            length, start = int(packed.length_B[b]), starts[modality_name]
            starts[modality_name] += length
            assert bool(batch.present_BM[b, m]) == (length > 0)
            for field in ("position_N", "unit_N", "part_N", "values_NF", "token_N", "geometry_N5"):
                tensor = getattr(packed, field)
                if tensor is not None:
                    rows[modality_name, field] = tensor[start : start + length].numpy().tobytes()
        seen.append((name, int(batch.product_B[b]), int(batch.draw_B[b]), int(batch.label_B[b]), tuple(rows.items())))
    assert all(starts[name] == packed.num_rows for name, packed in batch.modalities.items())
    return seen


def step_products(step):
    return [product for batch in step.micro_batches for product in products(batch)]


def take(loader, num_steps, position=0):
    return list(loader.steps(position, num_steps))


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


def test_damaged_files_become_recorded_absences(make, prepared):
    """The catalogue has one damaged picture, clip and sound; a second picture stands in where there is one."""
    data = replace(DATA, modality_dropout=0.0)
    bad, seen, num_decoded = [], {}, 0
    for split in ("train", "validation"):
        for step in make(split=split, data=data, training=False).evaluation_steps():
            bad += step.bad_media
            num_decoded += step.num_decoded
            for batch in step.micro_batches:
                seen |= dict(zip(batch.ids, batch.present_BM.tolist(), strict=True))
    items = [json.loads(line) for line in (prepared / "catalogue/items.jsonl").read_text().splitlines()]
    by_id = {item["id"]: item for item in items}
    kinds = [entry.member.split(".")[1] for entry in bad]
    assert sorted(kinds) == ["audio", "image", "video"]
    assert all(entry.reason for entry in bad)
    lost = {(entry.product_id, kind) for entry, kind in zip(bad, kinds, strict=True)}
    for name, item in by_id.items():
        declared = {
            "image": bool(item["images"]),
            "text": bool(item["title"]),
            "table": bool(item["attributes"]),
            "video": bool(item["videos"]),
            "audio": bool(item["audios"]),
        }
        for m, modality_name in enumerate(INPUTS):
            spare = modality_name == "image" and len(item["images"]) > 1
            expected = declared[modality_name] and ((name, modality_name) not in lost or spare)
            assert seen[name][m] == expected, (name, modality_name)
    firsts = sum(bool(item[field]) for item in items for field in ("images", "videos", "audios"))
    assert num_decoded == firsts + sum(kind == "image" and len(by_id[name]["images"]) > 1 for name, kind in lost)


def test_the_products_next_file_is_tried_and_every_bad_one_recorded_once(prepared, decoder):
    reader = ShardReader(prepared / "shards", "train")
    stored = (reader.read(0, index) for index in range(reader.num_products))
    good = next(product for product in stored if "image" in product.present and "video" in product.present)
    picture = good.media["image"][0]
    junk = [replace(picture, name=f"junk.image.{number}.jpg", data=b"junk" * 50) for number in range(2)]
    maker = MicroBatchMaker({"image": INPUTS["image"]}, load_tokenizer(prepared / "tokenizer"), decoder)
    mixed = replace(good, media={"image": [*junk, picture]})
    made = maker.make([mixed, replace(good, media={"image": junk})], [0, 0])
    assert made.batch.present_BM.tolist() == [[True], [False]]
    assert sorted(bad.member for bad in made.bad_media) == sorted([media.name for media in junk] * 2)
    assert made.num_decoded == 5
    alone = maker.make([replace(good, media={"image": [picture]})], [0])
    assert torch.equal(made.batch.modalities["image"].values_NF, alone.batch.modalities["image"].values_NF)


def test_a_batch_whose_every_file_is_damaged_is_all_absences(prepared, decoder):
    """Reshaping zero clips into tubes once crashed the loader."""
    product = ShardReader(prepared / "shards", "train").read(0, 0)
    media = {name: [Media(f"junk.{name}", b"junk" * 50)] for name in ("image", "video", "audio")}
    damaged = replace(product, media=media, present=frozenset(media))
    made = MicroBatchMaker(INPUTS, load_tokenizer(prepared / "tokenizer"), decoder).make([damaged] * 2, [0, 0])
    assert not made.batch.present_BM.any() and made.batch.num_tokens == 0
    assert len(made.bad_media) == made.num_decoded == 6


def test_the_description_follows_the_title_unless_the_input_leaves_it_out(prepared, decoder):
    reader, tokenizer = ShardReader(prepared / "shards", "train"), load_tokenizer(prepared / "tokenizer")
    product = replace(reader.read(0, 0), title="red shirt", description="a soft blue bag", present=frozenset({"text"}))

    def tokens(**options):
        maker = MicroBatchMaker({"text": TextTokens(max_tokens=24, **options)}, tokenizer, decoder)
        return maker.make([product], [0]).batch.modalities["text"].token_N.tolist()

    title, description = (tokenizer.encode(text) for text in (product.title, product.description))
    assert tokens() == [tokenizer.cls_id, *title, *description, tokenizer.sep_id]
    assert tokens(use_description=False) == [tokenizer.cls_id, *title, tokenizer.sep_id]


def test_products_without_text_or_attributes_lack_those_modalities(prepared, decoder):
    reader, tokenizer = ShardReader(prepared / "shards", "train"), load_tokenizer(prepared / "tokenizer")
    product = replace(reader.read(0, 0), title="", description="", attributes=[], present=frozenset({"text", "table"}))
    made = MicroBatchMaker(INPUTS, tokenizer, decoder).make([product, None], [0, EVALUATION_DRAW])
    assert not made.batch.present_BM.any()
    assert made.batch.num_tokens == 0 and made.batch.ids == [product.id, ""]


def test_only_the_models_modalities_are_decoded(make):
    chosen = {"audio": MODALITIES["audio"], "text": MODALITIES["text"]}
    step = take(make(modalities=chosen, data=replace(DATA, modality_dropout=0.0)), 1)[0]
    batch = step.micro_batches[0]
    assert list(batch.modalities) == ["text", "audio"] and batch.present_BM.shape == (G, 2)
    assert step.num_decoded == int(batch.present_BM[:, 1].sum()) + len(step.bad_media)


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


class Blocking:
    """A decoder that waits for a gate, and then fails if told to."""

    def __init__(self, decoder, error=None):
        self.gate, self.error, self.decoder = threading.Event(), error, decoder

    def __getattr__(self, name):
        def call(*arguments):
            assert self.gate.wait(30)
            if self.error is not None:
                raise self.error
            return getattr(self.decoder, name)(*arguments)

        return call


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def test_an_error_in_a_thread_reaches_the_consumer_and_leaves_no_thread(make, decoder):
    failing = Blocking(decoder, error=RuntimeError("the device fell off"))
    failing.gate.set()
    loader = make(decode=failing, data=replace(DATA, num_threads=3))
    with pytest.raises(RuntimeError, match="the device fell off"):
        next(loader.steps())
    assert not loader_threads()


@pytest.mark.timeout(60)
def test_leaving_early_ends_the_threads(make):
    for step in make(data=replace(DATA, num_threads=3, prefetch_steps=4)).steps():
        assert step.micro_batches
        break
    gc.collect()
    assert not loader_threads()
    loader = make()
    iterator = loader.steps()
    next(iterator)
    loader.close()
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(iterator)


def test_waiting_is_measured_and_work_is_done_ahead(make, decoder):
    slow = Blocking(decoder)
    loader = make(decode=slow, data=replace(DATA, prefetch_steps=2))
    threading.Timer(0.3, slow.gate.set).start()
    iterator = loader.steps(num_steps=3)
    assert next(iterator).wait_seconds > 0.2
    deadline = time.monotonic() + 30
    while len(loader._plans) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    assert next(iterator).wait_seconds < 0.2


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
    smell = modality.Modality(name="smell", number=5, catalogue_field="smells", task="mom")
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
