"""Raw products to features: the processor, alone and beside a saved model."""

import dataclasses
import io
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m5ds import config, modality
from m5ds.data.batches.micro_batch import MicroBatchMaker
from m5ds.data.decode.decoder import Decoder
from m5ds.data.shards.reader import Media, RawProduct
from m5ds.data.tokenizer import train_tokenizer
from m5ds.inputs import FeatureRows, RegionFeatures
from m5ds.kernels.common import philox
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.processor import M5Processor

ROOT = Path(__file__).parents[1]
TINY = """
  hidden_size: 16
  num_heads: 2
  ffn_dim: 24
  modalities:
    image: {input: {size: 12, patch: 4}}
    video: {mask_unit: row, embedder: feature_rows, input: {kind: feature_rows, rows: 4, dim: 6}}
    audio: {input: {seconds: 0.6, num_mels: 16, patch_mels: 8, n_fft: 256}}
  blocks: {unimodal: {repeat: 1}}
"""


@pytest.fixture(scope="module")
def tokenizer():
    words = ["red shoe", "blue coat", "green hat", "colour", "size", "material", "cotton", "leather"]
    with pytest.warns(UserWarning, match="fewer than vocab_size"):
        return train_tokenizer([f"{a} {b}" for a in words for b in words], 600)


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"name: tiny\nmodel:\n  base: {ROOT}/configs/model/m5mmt.yaml\n{TINY}\ntrain: {{total_steps: 1}}\n")
    return config.load(path).model


def tone(seconds: float = 0.5) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        steps = np.arange(int(16000 * seconds))
        sound.writeframes((8000 * np.sin(steps / 9)).astype("<i2").tobytes())
    return stream.getvalue()


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (20, 16), colour)


def test_products_of_every_kind_of_medium_become_a_batch(tmp_path, spec, tokenizer):
    picture().save(tmp_path / "red.jpg")
    batch = M5Processor.for_model(spec, tokenizer)(
        [
            {"id": "a", "title": "red shoe", "images": tmp_path / "red.jpg", "audios": [tone()]},
            {"attributes": {"colour": "red"}, "images": [picture()], "videos": np.ones((3, 6))},
            {},
        ]
    )
    assert batch.ids == ["a", "1", "2"]
    present = [["image", "text", "audio"], ["image", "table", "video"], []]
    for found, names in zip(batch.present_BM.tolist(), present, strict=True):
        assert [name for name, is_there in zip(batch.modalities, found, strict=True) if is_there] == names
    assert batch.modalities["image"].length_B.tolist() == [9, 9, 0]
    assert batch.modalities["video"].values_NF.shape == (3, 6)


def test_a_saved_model_and_processor_give_the_same_features(tmp_path, spec, tokenizer):
    processor = M5Processor.for_model(spec, tokenizer)
    model = M5ForPretraining(M5Config.for_tokenizer(spec, tokenizer)).eval()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    products = [{"title": "blue coat", "images": picture("blue"), "attributes": [["size", "small"]]}]
    again = M5Processor.from_pretrained(tmp_path / "saved")
    assert again.inputs == processor.inputs
    with torch.no_grad():
        expected = model(processor(products), masked=False)
        found = M5ForPretraining.from_pretrained(tmp_path / "saved").eval()(again(products), masked=False)
    assert torch.equal(expected.fused_BMD, found.fused_BMD)
    assert expected.fused_BMD[0, :3].abs().sum(1).all() and not expected.fused_BMD[0, 3:].any()


@pytest.mark.parametrize(
    ("product", "message"),
    [
        ({"image": picture()}, "product 0: unknown field 'image'; known: id, title, description, attributes, images"),
        ({"id": "x", "images": b"junk"}, "product 'x': no image that can be read: .*leave the field out"),
        ({"images": "/nowhere.jpg"}, "/nowhere.jpg: No such file"),
        ({"images": 3}, "a medium is a path, bytes, a PIL image or an array, got int"),
        ({"videos": np.ones((3, 5))}, r"expected \(rows, 6\)"),
    ],
)
def test_what_cannot_be_read_is_an_error(spec, tokenizer, product, message):
    with pytest.raises(ValueError, match=message):
        M5Processor.for_model(spec, tokenizer)([product])


def test_the_first_readable_medium_counts(spec, tokenizer):
    batch = M5Processor.for_model(spec, tokenizer)([{"images": [b"junk", picture()]}])
    assert batch.present_BM[0].tolist() == [name == "image" for name in modality.names()]


def test_a_folder_without_processor_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="processor_config.json: No such file or directory; save the processor"):
        M5Processor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a processor's configuration"):
        M5Processor.from_pretrained(tmp_path)


def test_every_field_of_a_product_goes_where_the_engine_would_put_it(tmp_path, spec, tokenizer):
    """The batch of the processor against the engine's own, made from records."""
    picture("green").save(tmp_path / "G.JPG")
    given = [
        {"id": 7, "title": "red shoe", "description": "green hat", "attributes": [("colour", 3), ("size", None)]},
        {"title": None, "description": "blue coat", "images": str(tmp_path / "G.JPG")},
        {"id": "x", "title": "", "attributes": {}, "audios": [tone(), b"junk"], "videos": np.ones((2, 6))},
    ]
    records = [
        raw_product("7", "red shoe", "green hat", [("colour", "3"), ("size", "None")], {}),
        raw_product("1", "", "blue coat", [], {"image": [Media("1.image.0.jpg", (tmp_path / "G.JPG").read_bytes())]}),
        raw_product("x", "", "", [], {"audio": [Media("a", tone())], "video": [Media("v.npy", npy(np.ones((2, 6))))]}),
    ]
    inputs = {name: spec.modalities[name].input for name in spec.modality_names}
    maker = MicroBatchMaker(inputs, tokenizer, Decoder("cpu", 1))
    expected = maker.make(records, [philox.EVALUATION_DRAW] * 3).batch
    found = M5Processor.for_model(spec, tokenizer)(given)
    assert found.ids == expected.ids == ["7", "1", "x"]
    for field in ("product_B", "draw_B", "label_B", "present_BM"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field
    assert (found.draw_B == philox.EVALUATION_DRAW).all() and (found.label_B == -1).all()
    for name, rows in expected.modalities.items():
        for field in dataclasses.fields(rows):
            ours, theirs = getattr(found.modalities[name], field.name), getattr(rows, field.name)
            assert (ours is None) == (theirs is None)
            assert theirs is None or torch.equal(ours, theirs), (name, field.name)


def raw_product(name, title, description, attributes, media):
    held = {"text": title or description, "table": attributes, **media}
    return RawProduct(
        id=name,
        product=philox.product_hash(name),
        title=title,
        description=description,
        attributes=attributes,
        category=[],
        label=-1,
        present=frozenset(key for key, value in held.items() if value),
        media=media,
    )


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_all_kinds_of_medium_with_the_same_content_give_the_same_rows(tmp_path, spec, tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), data, bytearray(data), image, [image], (data,)]
    batch = M5Processor.for_model(spec, tokenizer)([{"images": kind} for kind in kinds])
    rows = batch.modalities["image"].values_NF.reshape(len(kinds), -1)
    assert all(torch.equal(rows[0], other) for other in rows[1:])


def test_tensors_for_a_forward_that_masks_nothing(spec, tokenizer):
    processor = M5Processor.for_model(spec, tokenizer)
    inputs = processor([{"title": "red shoe"}], return_tensors="pt")
    assert set(inputs) == {"batch", "masked"} and inputs["masked"] is False and inputs["batch"].ids == ["0"]
    model = M5ForPretraining(M5Config.for_tokenizer(spec, tokenizer)).eval()
    assert torch.equal(model(**inputs).fused_BMD, model(inputs["batch"], masked=False).fused_BMD)
    with pytest.raises(ValueError, match="return_tensors must be 'pt' or left out, got 'np'"):
        processor([{}], return_tensors="np")


def test_one_product_that_is_no_list_is_refused(spec, tokenizer):
    with pytest.raises(ValueError, match=r"give a list of products, not one mapping; write processor\(\[product\]\)"):
        M5Processor.for_model(spec, tokenizer)({"title": "red shoe"})


def test_several_unreadable_media_are_counted_and_the_first_named(spec, tokenizer):
    products = [{"id": "a", "title": "x"}, {"id": "b", "images": [b"junk", b"more"]}, {"id": "c", "audios": b"junk"}]
    with pytest.raises(ValueError, match=r"product 'b': no image .*: .*; .*; leave the field out .*\(2 such cases"):
        M5Processor.for_model(spec, tokenizer)(products)


def test_inputs_stand_in_table_order(spec, tokenizer):
    given = {name: spec.modalities[name].input for name in ("audio", "text", "image")}
    assert list(M5Processor(given, tokenizer).inputs) == ["image", "text", "audio"]


def test_a_saved_folder_names_its_class_and_comes_back_with_the_loaders_own_settings(tmp_path, spec, tokenizer):
    M5Processor.for_model(spec, tokenizer).save_pretrained(tmp_path / "new" / "saved")
    text = (tmp_path / "new" / "saved" / "processor_config.json").read_text()
    tree = json.loads(text)
    assert text == json.dumps(tree, indent=2) + "\n"
    assert tree["processor_class"] == "M5Processor"
    assert tree["auto_map"] == {"AutoProcessor": "modeling_m5ds.M5Processor"}
    found = M5Processor.from_pretrained(tmp_path / "new" / "saved", device="cpu", num_threads=1, _from_auto=True)
    assert found.tokenizer.vocab_size == tokenizer.vocab_size
    M5Processor.register_for_auto_class("AutoProcessor")


def test_device_and_threads_reach_the_decoder(tmp_path, monkeypatch, spec, tokenizer):
    """One thread and whatever device there is, unless told otherwise."""
    made = []
    monkeypatch.setattr("m5ds.processor.Decoder", lambda **options: made.append(options) or Decoder("cpu", 1))
    processor = M5Processor.for_model(spec, tokenizer)
    M5Processor.for_model(spec, tokenizer, device="cpu", num_threads=3)
    processor.save_pretrained(tmp_path)
    M5Processor.from_pretrained(tmp_path, num_threads=2, trust_remote_code=True)
    M5Processor.from_pretrained(tmp_path)
    auto = {"device": "auto", "num_threads": 1}
    assert made == [auto, {"device": "cpu", "num_threads": 3}, auto | {"num_threads": 2}, auto]


def test_a_damaged_configuration_of_a_saved_processor_is_one_line(tmp_path, spec, tokenizer):
    M5Processor.for_model(spec, tokenizer).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert list(json.loads(text)["inputs"]) == list(spec.modality_names)
    for damaged in (
        text[:-9],
        "[]",
        text.replace("image_patches", "pictures"),
        text.replace('"size": 12', '"size": 13'),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="processor_config.json: not a processor's configuration: ") as caught:
            M5Processor.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        assert ("input kind 'pictures' is unknown; known: " in str(caught.value)) == ("pictures" in damaged)


def test_media_are_named_by_product_modality_and_number(tmp_path, spec, tokenizer):
    """The decoders' messages speak of them."""
    (tmp_path / "A.JPG").write_bytes(b"junk")
    raw = M5Processor.for_model(spec, tokenizer)._raw
    given = [tmp_path / "A.JPG", b"junk", picture(), {"features": [1]}, np.ones((1, 6))]
    media = raw(3, {"id": "p", "images": given, "title": "red"}).media
    assert [item.name for item in media["image"]] == [
        f"p.image.{i}{s}" for i, s in enumerate((".jpg", "", ".png", ".npz", ".npy"))
    ]
    assert list(media) == ["image"]
    with np.load(io.BytesIO(media["image"][3].data)) as arrays:
        assert arrays["features"].tolist() == [1]
    product = raw(3, {"audios": [], "videos": None, "attributes": {"size": 3}})
    assert (product.id, product.media, product.present) == ("3", {}, frozenset({"table"}))
    assert raw(0, {"description": "x"}).present == {"text"}


def test_a_misspelt_keyword_of_loading_is_refused_and_those_of_auto_classes_are_not(tmp_path, spec, tokenizer):
    M5Processor.for_model(spec, tokenizer).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="num_thread"):
        M5Processor.from_pretrained(tmp_path, num_thread=2)
    M5Processor.from_pretrained(tmp_path, trust_remote_code=True, code_revision=None, local_files_only=True)


def test_arrays_by_name_are_regions_and_a_field_may_be_null(tokenizer):
    inputs = {"image": RegionFeatures(max_regions=4, dim=5), "video": FeatureRows(rows=2, dim=6)}
    regions = {"features": np.ones((2, 5), "float32"), "boxes": np.array([[0, 0, 4, 4]] * 2), "size": np.array([8, 8])}
    batch = M5Processor(inputs, tokenizer)([{"images": regions}, {"images": None, "videos": []}])
    assert batch.modalities["image"].length_B.tolist() == [2, 0]
    assert batch.present_BM.any(dim=1).tolist() == [True, False]
