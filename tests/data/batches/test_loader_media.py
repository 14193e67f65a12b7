"""What becomes of a product's files and words in a batch, with real decoders and a real tokenizer."""

import json
from dataclasses import replace

import torch
from loader_cases import DATA, INPUTS, MODALITIES, G, take

from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.shards.reader import Media, ShardReader
from m5ds.data.tokenizer import load_tokenizer
from m5ds.inputs import (
    TextTokens,
)
from m5ds.kernels.common.philox import EVALUATION_DRAW


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
