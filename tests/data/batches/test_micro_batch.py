"""What is asked of tokenizer and decoder for a micro-batch, with stand-ins for both."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from m5ds.data.batches import augment
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.inputs import (
    AudioPatches,
    FeatureRows,
    ImagePatches,
    RegionFeatures,
    TablePairs,
    TextTokens,
    VideoTubes,
    keyed,
)
from m5ds.inputs.keyed import Keys
from m5ds.inputs.media import BadMedia, Decoded
from m5ds.kernels.common.philox import EVALUATION_DRAW, product_hash

IMAGE = ImagePatches(size=4, patch=2)
VIDEO = VideoTubes(frames=2, size=2, patch=2)
AUDIO = AudioPatches(seconds=0.5, num_mels=4, patch_mels=2, patch_steps=2)
SEED = 11


class Letters:
    """A token for each letter, and a note of every text."""

    cls_id, sep_id = 1, 2

    def __init__(self):
        self.seen = []

    def encode(self, text):
        self.seen.append(text)
        return [ord(letter) for letter in text]


class Recorder:
    """Decodes what does not begin with `bad` to a constant, and notes what it was asked for."""

    def __init__(self):
        self.calls = []

    def _decode(self, items, shape, *asked):
        self.calls.append(([item.member for item in items], *asked))
        kept = [place for place, item in enumerate(items) if not item.data.startswith(b"bad")]
        failures = [BadMedia(item.product_id, item.member, "bad") for item in items if item.data.startswith(b"bad")]
        values = [torch.full(shape, float(items[place].data)) for place in kept]
        return Decoded(torch.stack(values) if values else torch.zeros(0, *shape), kept, failures)

    def images(self, items, spec, crops):
        return self._decode(items, (3, spec.size, spec.size), crops)

    def videos(self, items, spec, crops, times):
        return self._decode(items, (spec.frames, 3, spec.size, spec.size), crops, times)

    def audios(self, items, spec, starts):
        return self._decode(items, (spec.num_mels, 2), starts)


def product(name, title="", description="", attributes=(), **media):
    files = {
        key: [Media(f"{name}.{key}.{i}", data) for i, data in enumerate(contents)] for key, contents in media.items()
    }
    return RawProduct(
        id=name,
        product=product_hash(name),
        title=title,
        description=description,
        attributes=list(attributes),
        category=[],
        label=4,
        present=frozenset([*files, *["text"] * bool(title or description), *["table"] * bool(attributes)]),
        media=files,
    )


PRODUCTS = [
    product("a", image=[b"1", b"2", b"3"], video=[b"4"], audio=[b"5"]),
    product("b", image=[b"6"], audio=[b"7", b"8"]),
    product("c", image=[b"9", b"10", b"11"], video=[b"12", b"13"]),
]
MEDIA = {"image": IMAGE, "video": VIDEO, "audio": AUDIO}


def keys_of(products, draws):
    return Keys(torch.tensor([item.product for item in products]), torch.tensor(draws))


def made_by(specs, products, draws=None, **options):
    recorder = Recorder()
    made = MicroBatchMaker(specs, Letters(), recorder, **options).make(products, draws or [0] * len(products))
    return made, recorder.calls


@pytest.mark.parametrize("options", [{}, {"seed": SEED}, {"seed": SEED, "modality_dropout": 1.0}, {"training": False}])
def test_outside_training_nothing_is_random(options):
    """Not by default either: the first file, the centre, and nothing dropped."""
    made, calls = made_by(MEDIA, PRODUCTS, [3, 4, 5], **options)
    assert calls == [
        (["a.image.0", "b.image.0", "c.image.0"], [None] * 3),
        (["a.video.0", "c.video.0"], [None] * 2, [[0.25, 0.75]] * 2),
        (["a.audio.0", "b.audio.0"], [0.5] * 2),
    ]
    assert made.batch.present_BM.tolist() == [[True, True, True], [True, False, True], [True, True, False]]
    assert made.batch.modalities["image"].values_NF[:, 0].tolist() == [1] * 4 + [6] * 4 + [9] * 4
    assert made.batch.draw_B.tolist() == [3, 4, 5] and made.batch.label_B.tolist() == [4, 4, 4]
    assert made.num_decoded == 7 and made.bad_media == []


def test_variants_of_one_product_have_one_group_and_nothing_pads_with_them():
    variants = [
        replace(PRODUCTS[0], group="shirt"),
        replace(PRODUCTS[1], group="shirt"),
        replace(PRODUCTS[2], group="id:c"),
    ]
    batch = MicroBatchMaker(MEDIA, Letters(), Recorder()).make([*variants, None], [0] * 4).batch
    assert batch.group_B.tolist() == [product_hash("shirt")] * 2 + [product_hash("id:c"), product_hash("")]
    assert batch.group_B.dtype == torch.int64 and batch.to("cpu").group_B is batch.group_B


def test_training_draws_files_crops_times_and_windows_of_each_product():
    draws = [3, 4, 5]
    _, calls = made_by(MEDIA, PRODUCTS, draws, seed=SEED, training=True)
    keys = keys_of(PRODUCTS, draws)
    of_video, of_audio = keys.take([0, 2]), keys.take([0, 1])
    first = {
        "image": augment.first_files(keys, SEED, 0, [3, 1, 3]),
        "video": augment.first_files(of_video, SEED, 3, [1, 2]),
        "audio": augment.first_files(of_audio, SEED, 4, [1, 2]),
    }
    assert calls == [
        (
            [f"{name}.image.{file}" for name, file in zip("abc", first["image"], strict=True)],
            keyed.crops(keys, SEED, 0),
        ),
        (
            [f"{name}.video.{file}" for name, file in zip("ac", first["video"], strict=True)],
            keyed.crops(of_video, SEED, 3),
            keyed.frame_times(of_video, SEED, 3, 2).tolist(),
        ),
        (
            [f"{name}.audio.{file}" for name, file in zip("ab", first["audio"], strict=True)],
            keyed.window_starts(of_audio, SEED, 4).tolist(),
        ),
    ]


def test_training_without_random_crops_takes_the_centre_of_random_files():
    draws = list(range(40))
    products = [PRODUCTS[0]] * 40
    _, calls = made_by(MEDIA, products, draws, seed=SEED, training=True, random_crop=False)
    (pictures, crops), (_, _, times), (_, starts) = calls
    assert (crops, times, starts) == ([None] * 40, [[0.25, 0.75]] * 40, [0.5] * 40)
    assert set(pictures) == {"a.image.0", "a.image.1", "a.image.2"}


def test_where_a_file_is_bad_the_next_is_tried_and_the_first_follows_the_last():
    """The chosen file comes first and the others after it in a ring; a product that has one is not asked again."""
    products = [
        product("a", image=[b"bad", b"bad", b"3"]),
        product("b", image=[b"4", b"bad"]),
        product("c", image=[b"bad"]),
    ]
    made, calls = made_by({"image": IMAGE}, products)
    assert [members for members, _ in calls] == [["a.image.0", "b.image.0", "c.image.0"], ["a.image.1"], ["a.image.2"]]
    assert made.num_decoded == 5 and [bad.member for bad in made.bad_media] == ["a.image.0", "c.image.0", "a.image.1"]
    assert made.batch.present_BM.tolist() == [[True], [True], [False]]
    assert made.batch.modalities["image"].values_NF[:, 0].tolist() == [3] * 4 + [4] * 4
    draw = next(n for n in range(99) if augment.first_files(keys_of(products[:1], [n]), SEED, 0, [3]) == [1])
    _, calls = made_by({"image": IMAGE}, [product("a", image=[b"bad"] * 3)], [draw], seed=SEED, training=True)
    assert [members for members, _ in calls] == [["a.image.1"], ["a.image.2"], ["a.image.0"]]


def test_dropout_takes_a_training_products_modalities_by_its_own_draw():
    products, draws = [PRODUCTS[0]] * 60, list(range(60))
    made, calls = made_by(MEDIA, products, draws, seed=SEED, training=True, modality_dropout=0.4)
    present_KM = torch.ones(60, 3, dtype=torch.bool)
    expected = augment.kept_modalities(keys_of(products, draws), SEED, [0, 3, 4], present_KM, 0.4)
    assert torch.equal(made.batch.present_BM, expected) and 0.4 < expected.float().mean() < 0.8
    assert [len(members) for members, *_ in calls] == expected.sum(0).tolist(), "what is dropped is not decoded"
    made, _ = made_by(MEDIA, products, draws, seed=SEED, training=True)
    assert made.batch.present_BM.all(), "no dropout by default"


def test_an_empty_product_has_no_rows_and_a_modality_must_be_declared():
    undeclared = replace(product("d", title="red", image=[b"1"]), present=frozenset())
    made, calls = made_by({"text": TextTokens(), "image": IMAGE}, [None, undeclared], [EVALUATION_DRAW] * 2)
    assert made.batch.ids == ["", "d"] and made.batch.label_B.tolist() == [-1, 4]
    assert made.batch.product_B.tolist() == [product_hash(""), product_hash("d")]
    assert not made.batch.present_BM.any() and calls == []


def test_modalities_come_in_table_order_whatever_order_they_are_named_in():
    made, _ = made_by({"audio": AUDIO, "image": IMAGE}, PRODUCTS)
    assert list(made.batch.modalities) == ["image", "audio"]
    assert made.batch.modalities["audio"].values_NF[:, 0].tolist() == [5, 5, 7, 7]


@pytest.mark.parametrize(("title", "asked"), [("four", True), ("fives", False), ("longer", False)])
def test_a_description_is_read_only_where_the_title_leaves_room(title, asked):
    """Of a novel no more than 64 characters a token are tokenised."""
    letters, spec = Letters(), TextTokens(max_tokens=5)
    maker = MicroBatchMaker({"text": spec}, letters, Recorder())
    made = maker.make([product("a", title=title, description="d" * 1000)], [0])
    assert letters.seen == [title, *["d" * 64 * 5] * asked]
    text = (title + "d" * 9)[:3]
    assert made.batch.modalities["text"].token_N.tolist() == [1, *map(ord, text), 2]


def test_tables_are_cut_as_their_input_says_and_strings_are_tokenised_once():
    letters = Letters()
    maker = MicroBatchMaker({"table": TablePairs(max_tokens=6, max_tokens_per_pair=4)}, letters, Recorder())
    pairs = [("a", "bc"), ("d", "efgh"), ("a", "bc"), ("x", "yz")]
    made = maker.make([product("a", attributes=pairs), product("b", attributes=pairs[1:2])], [0, 0])
    rows = made.batch.modalities["table"]
    assert rows.token_N.tolist() == [ord(letter) for letter in "abcabc"]
    assert rows.unit_N.tolist() == [0, 0, 0, 2, 2, 2] and rows.part_N.tolist() == [0, 1, 1] * 2
    assert rows.length_B.tolist() == [6, 0] and made.batch.present_BM.tolist() == [[True], [False]]
    assert sorted(letters.seen) == sorted(set("adx") | {"bc", "efgh", "yz"})


def test_feature_files_are_read_one_by_one_and_bad_ones_recorded():
    def saved(save, *arrays, **named):
        file = io.BytesIO()
        save(file, *arrays, **named)
        return file.getvalue()

    clip = saved(np.save, np.full((2, 3), 7.0))
    boxes = {"boxes": np.array([[0, 0, 1, 1]]), "size": np.array([2, 2])}
    regions = saved(np.savez, features=np.full((1, 4), 5.0), **boxes)
    specs = {"image": RegionFeatures(max_regions=2, dim=4), "video": FeatureRows(rows=2, dim=3)}
    products = [product("a", image=[b"junk", regions], video=[clip]), product("b", image=[regions], video=[b"junk"])]
    made, calls = made_by(specs, products)
    assert calls == [] and made.num_decoded == 5
    assert made.batch.present_BM.tolist() == [[True, True], [True, False]]
    assert made.batch.modalities["image"].values_NF.tolist() == [[5.0] * 4] * 2
    assert made.batch.modalities["video"].values_NF.tolist() == [[7.0] * 3] * 2
    assert [(bad.product_id, bad.member) for bad in made.bad_media] == [("a", "a.image.0"), ("b", "b.video.0")]
    assert made.bad_media[0].reason.startswith("region file is no .npz archive")
    assert made.bad_media[1].reason == "feature file is no .npy file"
